"""What the wheel holds, what the lock pins, and what no file of the repository may name."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
# Where each source folder is installed.
INSTALLED_AS = {
    "sae_plugins": "sae_plugins",
    "entrypoints": "sae_plugins/entrypoints",
    "eval_suites": "sae_plugins/eval_suites",
}
LARGEST_FILE = 16 * 2**20
# Written in two halves, or this file would be the one that names them.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted",
    "download." + "pytorch",
    "pypi." + "nvidia",
    "conda." + "anaconda",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: a `build/` folder left in the repository cannot flatter it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in INSTALLED_AS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    # The build backend itself, as pip calls it: no second tool, no network.
    code = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def source_files(*patterns: str) -> set[str]:
    """Files of the source folders that match, under the paths at which they are installed.

    `glob` follows no links, so that each file is found once.
    """
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in INSTALLED_AS.items()
        for pattern in patterns
        for path in (ROOT / folder).glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def repository_files() -> list[Path]:
    """Tracked files and those that git would offer to track."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_but_sae_plugins_is_installed_at_the_top(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sae_plugins"}


def test_every_module_of_the_repository_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert source_files("**/*.py") - set(wheel.namelist()) == set()
    assert "sae_plugins/entrypoints/main.py" in wheel.namelist()
    assert "sae_plugins/eval_suites/__init__.py" in wheel.namelist()


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without an __init__.py imports from the repository and is absent when installed."""
    modules = [path for folder in INSTALLED_AS for path in (ROOT / folder).rglob("*.py")]
    assert modules
    assert [path for path in modules if not (path.parent / "__init__.py").exists()] == []


def test_data_files_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    text = ("**/*.json", "**/*.yaml", "**/*.jinja", "study/*.html", "study/*.md")
    data = source_files("world/data/**/*", *text, "py.typed")
    assert {"sae_plugins/settings/sae_lens_flags.json", "sae_plugins/share/card.md.jinja"} <= data
    assert "sae_plugins/py.typed" in data
    assert any(name.startswith("sae_plugins/recipes/") for name in data)
    assert any(name.startswith("sae_plugins/world/data/") for name in data)
    assert data <= set(wheel.namelist())


def test_no_file_in_the_wheel_is_too_large(wheel: zipfile.ZipFile) -> None:
    assert [i.filename for i in wheel.infolist() if i.file_size > LARGEST_FILE] == []


def test_entry_points_are_those_of_pyproject(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(wheel.read(path).decode())
    assert dict(parser["sae_plugins"]) == PYPROJECT["project"]["entry-points"]["sae_plugins"]
    assert dict(parser["console_scripts"]) == PYPROJECT["project"]["scripts"]


def test_entry_points_lead_to_modules_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    project = PYPROJECT["project"]
    for target in [*project["entry-points"]["sae_plugins"].values(), *project["scripts"].values()]:
        module = target.split(":")[0].replace(".", "/")
        assert {f"{module}.py", f"{module}/__init__.py"} & set(wheel.namelist()), target


def test_the_lock_satisfies_pyproject() -> None:
    """Fails when a dependency changed and `make lock` was forgotten."""
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", LOCK, re.M):
        pins.setdefault(canonicalize_name(name), []).append(version)
    project = PYPROJECT["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        found = pins.get(canonicalize_name(wanted.name), [])
        assert found, f"{line} is not in requirements.lock; run `make lock`"
        assert all(version in wanted.specifier for version in found), (line, found)


def test_the_lock_is_hashed_and_names_no_address() -> None:
    """Requirements start their line; what belongs to one, its hashes too, is indented."""
    requirements = re.findall(r"^[A-Za-z0-9].*(?:\n +.*)*", LOCK, re.M)
    assert len(requirements) > 100
    assert [r.splitlines()[0] for r in requirements if "--hash=sha256:" not in r] == []
    assert re.findall(r"^-.*|.*://.*|.* @ .*", LOCK, re.M) == []


def test_no_file_names_a_registry_host() -> None:
    hosts = re.compile("|".join(map(re.escape, REGISTRY_HOSTS)).encode(), re.I)
    named = {str(path): hosts.findall(path.read_bytes()) for path in repository_files()}
    assert {path: found for path, found in named.items() if found} == {}


def test_no_file_of_the_repository_is_too_large() -> None:
    assert [path for path in repository_files() if path.stat().st_size > LARGEST_FILE] == []


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_environment(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Nothing of the repository is in reach: neither its files nor its top-level folders."""
    venv, folder = tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    python, command = venv / "bin" / "python", venv / "bin" / "sae-plugins"
    foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}

    def run(*arguments: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [str(argument) for argument in arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--quiet", "--python", sys.executable, venv)
    assert wheel.filename is not None
    run(*uv, "pip", "install", "--quiet", "--python", python, wheel.filename)
    assert "No module named 'entrypoints'" in run(python, "-c", "import entrypoints", code=1)
    assert "No module named 'eval_suites'" in run(python, "-c", "import eval_suites", code=1)
    assert "hybrid-order" in run(command, "plugins", "list")
    short = "--training_tokens 16384 --heldout_tokens 4096 --n_batches_in_buffer 64"
    reorder = "--reorder.start 8 --reorder.interval 8"
    recipe = ("--recipe", "hybrid-order-demo", "--output_path", "run")
    run(command, "train", *recipe, *short.split(), *reorder.split())
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["training/steps"] == 32
    assert summary["reorder/reorderings"] >= 3
    assert summary["heldout/tokens"] >= 4096
    load = "import sys, sae_lens; sae_lens.SAE.load_from_disk('run'); "
    run(python, "-c", load + "assert 'sae_plugins' not in sys.modules")
