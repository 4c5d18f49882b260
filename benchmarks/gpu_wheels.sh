#!/usr/bin/env bash
# Fills a folder with the wheels that benchmarks/gpu.sh needs on a machine without a network.
#
#     benchmarks/gpu_wheels.sh                        # into build/gpu-wheels, for Python 3.12
#     benchmarks/gpu_wheels.sh FOLDER 3.10 aarch64    # for another Python and processor
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-build/gpu-wheels} version=${2:-3.12} machine=${3:-x86_64}
python=${PYTHON:-.venv/bin/python}
largest=$((60 * 1024 * 1024))

if [ -n "$(ls -A "$folder" 2>/dev/null)" ]; then
    echo "$folder is not empty: remove it, or name another folder" >&2
    exit 1
fi
pins=$("$python" - "$version" "$machine" <<'PYTHON'
import re, sys
from pathlib import Path
from packaging.requirements import Requirement

version, machine = sys.argv[1:]
target = {"python_version": version, "python_full_version": version + ".0", "os_name": "posix",
          "sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine,
          "platform_python_implementation": "CPython", "implementation_name": "cpython"}
lock = Path("requirements.lock").read_text("utf-8")
pinned = [Requirement(line) for line in re.findall(r"^[A-Za-z0-9][^\\\n]+", lock, re.M)]
lines = Path("benchmarks/gpu_wheels.txt").read_text("utf-8").splitlines()
for name in (line for line in lines if not line.startswith("#")):
    found = [pin for pin in pinned if pin.name == name]
    if not found:
        sys.exit(f"{name} is not in requirements.lock")
    for pin in found:
        if pin.marker is None or pin.marker.evaluate(target):
            print(f"{pin.name}{pin.specifier}")
PYTHON
)
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
    platforms+=(--platform "${tag}_$machine")
done
mkdir -p "$folder"
# shellcheck disable=SC2086  # one word a pin
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" --dest "$folder" $pins

source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -RP pyproject.toml README.md LICENSE sae_plugins entrypoints eval_suites "$source"
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" "$source"

size=$(cat "$folder"/*.whl | wc -c)
echo "$folder: $(ls "$folder" | wc -l) wheels for Python $version, $((size / 1024 / 1024)) MiB"
if [ "$size" -gt "$largest" ]; then
    echo "They are larger than $((largest / 1024 / 1024)) MiB, which is all that may travel" >&2
    exit 1
fi
