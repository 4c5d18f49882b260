"""The code in README and docs: its blocks, and the packages that they teach to write, installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS, README = ROOT / "docs", ROOT / "README.md"


def blocks(language: str, *files: Path) -> list[str]:
    """The blocks of a language in these pages."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.M | re.S)
    return [block for file in files for block in fence.findall(file.read_text("utf-8"))]


def block(language: str, holding: str, file: Path) -> str:
    """The one block of a page that holds these words."""
    (only,) = [each for each in blocks(language, file) if holding in each]
    return only


def package(folder: Path, module: str, project: str, name: str) -> Path:
    """Where a package of one module is installed, which is written into `folder`."""
    source = folder / "package"
    source.mkdir()
    (source / f"{name}.py").write_text(module)
    (source / "pyproject.toml").write_text(project)
    return installed(source, folder / "site")


def installed(package: Path, site: Path) -> Path:
    """`site`, a folder into which a package's source or wheel is installed, and nothing else."""
    install = [sys.executable, "-m", "uv", "--quiet", "pip", "install", "--no-deps"]
    where = ["--no-build-isolation", "--target", str(site)]
    subprocess.run([*install, *where, str(package)], check=True)
    return site


def passes(text: str, test: Path) -> bool:
    """Whether the tests in `text` pass, as a file of their own."""
    test.write_text(text)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null"]
    return pytest.main([*options, "--rootdir", str(test.parent), str(test)]) == 0
