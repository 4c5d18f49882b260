"""`sae-plugins plugins new`: what it writes works as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sae_plugins.entrypoints.main import main
from sae_plugins.testing import train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "decoder-decay"]) == 0
    return tmp_path / "sae-decoder-decay"


def test_its_entry_point_names_a_mechanism_that_trains(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))
    ((name, target),) = project["project"]["entry-points"]["sae_plugins"].items()
    monkeypatch.syspath_prepend(package)
    plugin = EntryPoint(name, target, "").load()
    assert plugin.name == name == "decoder-decay"
    weak, strong = (
        train(plugin, steps=12, options={name: {"weight": weight}}).sae.W_dec for weight in (0, 5)
    )
    module = sys.modules.pop(plugin.__module__)
    assert module.overlap(strong) < module.overlap(weak)


@pytest.mark.ci
def test_its_own_tests_pass(package: Path) -> None:
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=package,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout


def test_nothing_is_overwritten(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = package / "sae_decoder_decay.py"
    module.write_text("mine")
    assert main(["plugins", "new", "decoder-decay"]) == 2
    assert "sae-decoder-decay is there already; choose another --output_path" in (
        capsys.readouterr().err
    )
    assert module.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["My_Idea"], "'My_Idea' is no name for a plugin: give lower-case letters"),
        (["../idea"], "'../idea' is no name for a plugin"),
        (["reorder"], "there is a plugin 'reorder' already, of sae-plugins"),
        (["lens"], "there is a Python module 'sae_lens' already"),
        (["bench", "--output_path", "mine"], "there is a Python module 'sae_bench' already"),
        ([], "give one NAME: sae-plugins plugins new NAME"),
        (["one", "two"], "give one NAME"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", *words]) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "package"
    assert main(["plugins", "new", "my-idea", "--output_path", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
