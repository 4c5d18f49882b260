"""The list of files that move at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae_plugins.base.errors import PluginError
from sae_plugins.runs import journal


def test_the_rest_of_the_files_moves(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    names = ["a", "b/c", "d"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    folder.mkdir()
    (folder / "old").write_text("of an earlier run")
    moves = journal.Moves(names, ["old"])
    assert journal.pending(folder) is None
    journal.begin(source, folder, moves)
    (source / "a").rename(folder / "a")
    assert journal.pending(folder) == moves
    journal.carry_out(source, folder, moves)
    journal.carry_out(source, folder, moves)
    assert not (folder / "old").exists()
    assert [(folder / name).read_text() for name in names] == names
    journal.end(folder)
    assert journal.pending(folder) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"moves": 3}', '{"moves": [3]}', "\udcff"])
def test_a_damaged_list_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / journal.JOURNAL).write_text(text, errors="surrogateescape")
    with pytest.raises(PluginError, match=r"unfinished\.json, a list of files .* is damaged"):
        journal.pending(tmp_path)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd"])
def test_nothing_outside_the_folder_is_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / journal.JOURNAL).write_text(json.dumps({"moves": ["a", name]}))
    with pytest.raises(PluginError, match="lists files outside"):
        journal.pending(tmp_path)
