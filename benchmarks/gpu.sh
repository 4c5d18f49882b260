#!/usr/bin/env bash
# Measures on a GPU, in under six minutes and without a network, into build/gpu: results.json and
# results.md. The machine has Python 3.10 to 3.12 with pip and torch 2.6 or later;
# benchmarks/gpu_wheels.sh fills the folder with the rest, elsewhere.
#
#     benchmarks/gpu.sh                                 # wheels in build/gpu-wheels
#     WHEELS=/mnt/wheels benchmarks/gpu.sh --output out
#     benchmarks/gpu.sh --device cpu --tiny             # tries it: shapes that say nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3} wheels=${WHEELS:-build/gpu-wheels}
"$python" -c 'import sys; from importlib.util import find_spec; sys.exit(not find_spec("torch"))' || {
    echo "'$python' has no torch: name another, as in PYTHON=/opt/venv/bin/python $0" >&2
    exit 1
}
if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
    echo "There are no wheels in $wheels: benchmarks/gpu_wheels.sh fills it, where there is a" \
        "network; WHEELS=FOLDER names another" >&2
    exit 1
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --target "$site" "$wheels"/*.whl
# The code is that of this folder; the wheel of ours has the names of its plugins.
PYTHONPATH="$PWD:$site" "$python" benchmarks/gpu.py "$@"
