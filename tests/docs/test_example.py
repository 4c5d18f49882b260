"""The package in `examples/`: built, installed from its wheel, and tested, as its readers would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import (
    ROOT,
    all_pass,
    check,
    commands,
    installed,
    on_two_and_on_every_architecture,
)

from sae_plugins.framework import registry

EXAMPLE = ROOT / "examples" / "sae-target-l0"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing is built inside the repository."""
    return shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("example") / EXAMPLE.name)


@pytest.fixture(scope="module")
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which its wheel is installed, and nothing else of it."""
    wheels = tmp_path_factory.mktemp("wheels")
    uv = [sys.executable, "-m", "uv", "--quiet"]
    build = ["build", "--wheel", "--no-build-isolation", "--out-dir", str(wheels), str(source)]
    subprocess.run([*uv, *build], check=True)
    (wheel,) = wheels.glob("*.whl")
    return installed(wheel, tmp_path_factory.mktemp("site"))


def test_it_is_found_by_its_name(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    (entry,) = [entry for entry in registry.listing() if entry.name == "target-l0"]
    assert entry.distribution == "sae-target-l0"
    assert entry.summary.startswith("Scale the sparsity coefficient step by step")


@on_two_and_on_every_architecture
def test_its_own_tests_pass(
    every: bool, site: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    assert all_pass(source / "tests", every)


@pytest.mark.slow
def test_its_own_tests_pass_as_its_readers_run_them(site: Path, source: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    result = subprocess.run(
        command,
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_commands_of_its_readme_are_valid(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    for words in commands((EXAMPLE / "README.md").read_text("utf-8")):
        check(words)


def test_it_stays_a_small_example() -> None:
    lines = (EXAMPLE / "sae_target_l0.py").read_text().splitlines()
    assert sum(1 for line in lines if line.strip()) <= 40
