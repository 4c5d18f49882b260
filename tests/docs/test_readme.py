"""The README's plugin, as the docs make a package of it, is built, installed and tested."""

import functools
import json
import re
from pathlib import Path

import pytest
from snippets import DOCS, README, block, on_two_and_on_every_architecture, package, passes

from sae_plugins import world
from sae_plugins.base.files import read_rows
from sae_plugins.entrypoints.main import main
from sae_plugins.framework import registry
from sae_plugins.testing import train

SPREAD = "class Spread(Plugin)"
PLUGIN, TRAIN = DOCS / "plugin.md", DOCS / "train.md"

pytestmark = pytest.mark.usefixtures("sketched")


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on few tokens has few of the world's documents, which take seconds to make."""
    monkeypatch.setattr(world, "load_text", functools.partial(world.load_text, documents=1000))


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package that the README describes is installed."""
    module, project = block("python", SPREAD, README), block("toml", "sae-spread", PLUGIN)
    return package(tmp_path_factory.mktemp("third-party"), module, project, "sae_spread")


def test_the_plugin_and_its_package_take_25_lines():
    module, project = block("python", SPREAD, README), block("toml", "sae-spread", PLUGIN)
    assert module == block("python", SPREAD, PLUGIN)
    assert sum(1 for line in (module + project).splitlines() if line.strip()) <= 25


def test_the_readme_is_short_and_shows_what_it_says():
    text = README.read_text("utf-8")
    assert len(text.split()) < 1086  # half of what it was
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    assert all((README.parent / picture).is_file() for picture in pictures)


def test_an_installed_package_is_found_by_name_listed_and_trained_with(
    third_party: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "spread" not in registry.installed()
    monkeypatch.syspath_prepend(str(third_party))
    (listed,) = [entry for entry in registry.listing() if entry.name == "spread"]
    assert listed.summary.startswith("Push decoder rows apart")
    assert (listed.distribution, listed.version) == ("sae-spread", "0.1")
    plain, spread = train(steps=4), train("spread", steps=4, options={"spread": {"weight": 0.5}})
    assert not plain.sae.W_dec.equal(spread.sae.W_dec)
    (entry,) = spread.sae.cfg.metadata.sae_plugins["plugins"]
    assert entry == {"name": "spread", "package": "sae-spread", "version": "0.1",
                     "options": {"weight": 0.5}}  # fmt: skip


@pytest.mark.usefixtures("few_documents")
def test_the_command_line_knows_an_installed_package(
    third_party: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.syspath_prepend(str(third_party))
    assert main(["plugins", "list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "spread" in line]
    assert "Push decoder rows apart" in line
    short = "--training_tokens 2048 --train_batch_size_tokens 128 --n_batches_for_norm_estimate 4"
    store = "--store_batch_size_prompts 4 --heldout_tokens 512 --n_batches_in_buffer 16"
    chosen = [
        "--plugin",
        "spread",
        "--spread.weight",
        "0.5",
        "--output_path",
        str(tmp_path / "run"),
    ]
    assert main(["train", *chosen, *short.split(), *store.split()]) == 0
    (last,) = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["step"] == 16]
    assert last["losses/spread/cosine"] > 0
    config = json.loads((tmp_path / "run" / "cfg.json").read_text())
    (entry,) = config["metadata"]["sae_plugins"]["plugins"]
    assert entry == {"name": "spread", "package": "sae-spread", "version": "0.1",
                     "options": {"weight": 0.5}}  # fmt: skip


@on_two_and_on_every_architecture
def test_the_contract_that_the_docs_show_passes(
    every: bool, third_party: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(third_party))
    contract = block("python", "class TestSpread(PluginContract)", PLUGIN)
    assert passes(contract, tmp_path / "test_spread.py", every)


@pytest.mark.parametrize("tokens", ["30_000", pytest.param("100_000", marks=pytest.mark.ci)])
def test_the_python_example_runs(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    if tokens != "100_000":
        request.getfixturevalue("few_documents")
    monkeypatch.chdir(tmp_path)
    example = block("python", "LanguageModelSAERunnerConfig(", TRAIN)
    assert "training_tokens=100_000" in example
    exec(example.replace("100_000", tokens), {})  # the page's own lines; by default, fewer tokens
    run = tmp_path / "runs" / "python"
    records = {"metrics.jsonl", "summary.json", "figures", "sae_weights.safetensors"}
    assert records <= {path.name for path in run.iterdir()}
    config = json.loads((run / "cfg.json").read_text())
    provenance = config["metadata"]["sae_plugins"]
    assert provenance["methods"] == ["hybrid-order"]
    steps = {"30_000": [52], "100_000": [52, 100, 152]}  # 50 and 150 are inside an accumulation
    assert provenance["reorderings"]["steps"] == steps[tokens]
