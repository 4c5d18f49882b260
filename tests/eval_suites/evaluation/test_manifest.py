"""A manifest that several processes have written in parts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base import files
from sae_plugins.eval_suites.evaluation.folder import Folder
from sae_plugins.eval_suites.evaluation.manifest import MANIFEST, PARTS, Manifest, Row
from sae_plugins.study.evaluated import HASHES, hashes_in


@pytest.mark.parametrize(("interrupted", "later"), [("a", "b"), ("b", "a")])
def test_the_part_that_was_written_last_is_right(
    interrupted: str, later: str, tmp_path: Path
) -> None:
    def write(part: str, seconds: int, sae_hash: str, **row: Any) -> None:
        place = tmp_path / PARTS / part
        place.mkdir(parents=True)
        one = Row(suite="core", sae="sae", source="sae", seed=0, settings="", **row)
        (place / MANIFEST).write_text(Manifest(rows=[one]).model_dump_json())
        (place / HASHES).write_text(json.dumps({"sae": sae_hash}))
        os.utime(place, (seconds, seconds))

    write(interrupted, 1, "before", status="running")
    write(later, 2, "now", status="ok", file="result.json")
    (row,) = Manifest.read(tmp_path).rows
    assert (row.status, row.file) == ("ok", "result.json")
    assert hashes_in(tmp_path) == {"sae": "now"}


def test_two_parts_may_write_the_result_of_one_sae_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, replace = Path("SAE-HASH/core.json"), os.replace

    def other_first(*paths: Path) -> None:
        monkeypatch.undo()
        Folder(tmp_path, "b").write(file, '"b"')
        replace(*paths)

    monkeypatch.setattr(files.os, "replace", other_first)
    Folder(tmp_path, "a").write(file, '"a"')
    assert (tmp_path / file).read_text() == '"a"'
    assert [path.name for path in (tmp_path / file).parent.iterdir()] == [file.name]
