"""The folder of a dry run refuses what a run's own would, and stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.journal import JOURNAL
from sae_plugins.runs.run_folder import RunFolder
from sae_plugins.runs.untouched import UntouchedFolder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(kind: type[RunFolder], path: str, overwrite: bool = False) -> str:
    folder = kind(Path(path))
    try:
        folder.check(overwrite)
    except PluginError as error:
        return str(error)
    finally:
        folder.release()
    return "fine"


def test_a_new_folder_is_not_made() -> None:
    assert said(UntouchedFolder, "deep/inside/run") == "fine"
    assert not Path("deep").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("path", ["file", "file/run", "full", "empty", "ended"])
def test_it_says_what_a_run_s_folder_says(path: str, overwrite: bool) -> None:
    Path("file").touch()
    for name in ("full", "empty", "ended"):
        Path(name).mkdir()
    Path("full/cfg.json").write_text("{}")
    Path("ended", JOURNAL).write_text('{"moves": []}')
    Path("ended/cfg.json").write_text("{}")
    before = sorted(Path().rglob("*"))
    found = said(UntouchedFolder, path, overwrite)
    assert sorted(Path().rglob("*")) == before
    if path != "ended":
        assert found == said(RunFolder, path, overwrite)
    else:
        assert (found == "fine") is overwrite


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_takes_nothing() -> None:
    Path("locked").mkdir(mode=0o500)
    assert "cannot be written to" in said(UntouchedFolder, "locked/run")
    assert "cannot be written to" in said(UntouchedFolder, "locked")


def test_it_is_locked_meanwhile() -> None:
    Path("run").mkdir()
    running = RunFolder(Path("run"))
    running.check(overwrite=False)
    assert "another run is writing" in said(UntouchedFolder, "run")
    running.release()


def test_an_ended_run_is_not_moved() -> None:
    Path("run").mkdir()
    Path("run", JOURNAL).write_text('{"moves": []}')
    folder = UntouchedFolder(Path("run"))
    assert not folder.reopen()
    folder.release()
    assert Path("run", JOURNAL).exists()
