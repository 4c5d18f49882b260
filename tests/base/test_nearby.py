"""Paths that are not there, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_plugins.base.nearby import meant, not_there


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/demo", "runs/other", "texts"):
        Path(folder).mkdir(parents=True)
    Path("texts", "train.jsonl").touch()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("runs/dmeo", "did you mean 'runs/demo'?"),
        ("./runs/dmeo", "did you mean 'runs/demo'?"),
        ("run/demo", "did you mean 'runs/demo'?"),
        ("rusn/dmeo", "did you mean 'runs/demo'?"),
        ("runz", "did you mean 'runs'?"),
        ("texts/trian.jsonl", None),
        ("runs/something", None),
        ("texts/train.jsonl/x", None),
        ("no/such/folder", None),
        ("x" * 300, None),
    ],
)
def test_folders_that_may_be_meant(given: str, wanted: str | None) -> None:
    assert meant(Path(given)) == wanted


def test_files_where_these_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "texts" / "trian.jsonl"
    near = f"did you mean '{tmp_path}/texts/train.jsonl'?"
    assert not_there(path, is_folder=False) == f": there is no such file or folder; {near}"
    (tmp_path / "link").symlink_to("gone")
    assert not_there(tmp_path / "link", is_folder=False).endswith("no such file or folder")
    assert not_there(Path("nowhere")) == ": there is no such folder"
