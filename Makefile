# `make` alone explains itself. Everything runs in .venv, which is built from requirements.lock.

PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist worksteal
BIN := .venv/bin
UV := $(BIN)/uv
STAMP := .venv/.installed
export VIRTUAL_ENV := $(CURDIR)/.venv
# Importing torch and SAELens without compiled bytecode takes several times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env demo test combinations slow faults smollm2 bos browser lint format types docs notebook world bench speed tables papers lock clean

help: ## this page
	@echo 'sae-plugins: start with `make env`, then `make demo`.'
	@echo
	@sed -nE 's/^([a-z0-9]+):[^#]*## (.*)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-19s %s\n", $$1, $$2}'
	@echo
	@echo 'PYTHON=python3.12 chooses another Python; PYTEST_ARGS="-k reorder" is handed to pytest.'

env: $(STAMP) ## build .venv from requirements.lock, if that or pyproject.toml changed

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null || { \
	    echo "sae-plugins needs Python 3.10, 3.11 or 3.12, and '$(PYTHON)' is none of them." \
	         "Name another: make env PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv$$(sed -nE 's/^uv(==[0-9.]+).*/\1/p' requirements.lock 2>/dev/null)"

$(STAMP): requirements.lock pyproject.toml | $(UV)
	$(UV) pip install --quiet --require-hashes -r requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: env ## train a small SAE into runs/demo, offline, and show its features: replaces both
	$(BIN)/sae-plugins train --recipe reorder-demo --output_path runs/demo --overwrite
	$(BIN)/sae-plugins features runs/demo --overwrite

# pytest's workers share the cores already.
test combinations slow faults smollm2 bos browser: export OMP_NUM_THREADS ?= 1

test: env ## run the quick tests
	$(BIN)/python -m pytest --durations=10 $(PYTEST_ARGS)

combinations: env ## run every mechanism, and every pair of them, on every architecture
	$(BIN)/python -m pytest -m combinations $(PYTEST_ARGS)

slow: env ## run the tests that take minutes
	$(BIN)/python -m pytest -m "(slow or ci) and not gpu and not combinations" $(PYTEST_ARGS)

faults: env ## kill and interrupt small runs at every change of their files
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS) tests/entrypoints/test_train_faults.py

smollm2: env ## download a real language model into build/smollm2, and run the tests on it
	$(BIN)/python benchmarks/smollm2.py build/smollm2
	SAE_PLUGINS_SMOLLM2=$(CURDIR)/build/smollm2 $(BIN)/python -m pytest -m smollm2

bos: env ## train the four methods on that model, with BOS and without, for docs/papers.md
	$(BIN)/python benchmarks/smollm2.py build/smollm2
	$(BIN)/python benchmarks/smollm2_methods.py build/smollm2
	$(BIN)/python docs/generate.py

browser: env ## look at reports, feature pages and the documentation in headless Chromium
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

lint: env ## check style, formatting, and that no file imports upwards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

format: env ## repair what `make lint` finds, where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: env ## check types with mypy --strict
	$(BIN)/mypy -p sae_plugins

# The variable silences an announcement of mkdocs-material's.
docs: env ## rewrite the generated parts of docs/, and build the site into build/site
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python docs/gallery.py
	@echo 'open build/site/index.html'

notebook: env ## run the notebook in docs/, and keep its outputs in it
	$(BIN)/python docs/notebook.py

world: env ## train the embedded world's language model again
	$(BIN)/python examples/embedded-world/train.py --work_path world-build

bench: env ## time plugins against plain SAELens, checkpoints against safetensors, buffers, feature pages
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_checkpoint.py
	$(BIN)/python benchmarks/bench_mixing.py
	$(BIN)/python benchmarks/bench_features.py

speed: export OMP_NUM_THREADS ?= 1
speed: env ## time the fast step beside other libraries' for docs/speed.md: ten minutes of an idle core
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python docs/generate.py

tables: export OMP_NUM_THREADS ?= 1
tables: env ## run the studies in docs/studies.md: hours
	$(BIN)/python benchmarks/smollm2.py build/smollm2
	$(BIN)/python benchmarks/study_tables.py quick toy toy-norm ours auto-k smollm2
	$(BIN)/python docs/generate.py

papers: export OMP_NUM_THREADS ?= 1
papers: env ## run the papers' studies at a reduced budget for docs/papers.md: hours
	$(BIN)/python benchmarks/study_tables.py hybrid-order hierarchical \
	    adaptive-threshold adaptive-orthogonality
	$(BIN)/python docs/generate.py

# Neither index nor host is written down: whoever installs uses the registry of their own settings.
lock: $(UV) ## resolve requirements.lock again (UPGRADE=1: to the newest versions)
	UV_FIND_LINKS= $(UV) --no-config pip compile pyproject.toml --extra dev \
	    --universal --python-version 3.10 --no-python-downloads --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-emit-index-annotation \
	    --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) \
	    --quiet --output-file requirements.lock

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
