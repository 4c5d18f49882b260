"""SAEs of a study stay when a mechanism's text changes that trains as it did, and only then."""

from __future__ import annotations

from pathlib import Path

import xxhash

from sae_plugins import mechanisms
from sae_plugins.study.cells import _text
from sae_plugins.study.moved import FORMER

FILES = [*Path(mechanisms.__file__).parent.glob("*.py")]


def test_every_row_is_of_a_mechanism_as_it_is_now() -> None:
    now = {xxhash.xxh3_64_hexdigest(file.read_bytes()) for file in FILES}
    forgotten = FORMER.keys() - now
    assert not forgotten, (
        "mechanisms that have rows in study/moved.py were edited: write the new hash of each text "
        f"that trains as before over its old one, and drop the others' rows, of {forgotten}"
    )


def test_every_row_leads_to_one_text_before() -> None:
    assert len(set(FORMER.values())) == len(FORMER)
    assert not FORMER.keys() & set(FORMER.values())
    assert {_text(str(file)) for file in FILES} >= set(FORMER.values())


def test_a_mechanism_that_is_edited_is_another(tmp_path: Path) -> None:
    known = {_text(str(file)) for file in FILES}
    for file in FILES:
        edited = tmp_path / file.name
        edited.write_bytes(file.read_bytes() + b"# edited\n")
        assert _text(str(edited)) not in known
