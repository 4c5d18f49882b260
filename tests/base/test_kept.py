"""Entries on disk: which files are ours, which are damaged, and which go first."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_plugins.base.kept import Damaged, Entry, above, entries, read, write

HEX = "0123456789abcdef" * 2
DAY = 24 * 60 * 60


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    path = tmp_path / "activations-a" / f"{HEX}.safetensors"
    write(path, ({"a": torch.arange(3)}, {"t": "é"}), "of this and that")
    return path


def test_an_entry_says_what_it_is_made_from(entry: Path, tmp_path: Path) -> None:
    (found,) = entries(tmp_path)
    assert (found.path, found.kind, found.about()) == (entry, "activations", "of this and that")
    assert found.size == entry.stat().st_size
    assert not found.is_damaged()
    tensors, texts = read(entry) or ({}, {})
    assert texts == {"t": "é"}
    assert torch.equal(tensors["a"], torch.arange(3))


def test_what_it_says_is_under_the_digest(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes().replace(b"of this and that", b"of that and this"))
    with pytest.raises(Damaged, match="digest"):
        read(entry)


def test_files_of_others_are_no_entries(entry: Path, tmp_path: Path) -> None:
    other = tmp_path / "activations-a" / f"{HEX[::-1]}.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    (tmp_path / "activations-a" / "weights.safetensors").write_bytes(entry.read_bytes())
    (tmp_path / f"{HEX}.safetensors").write_bytes(entry.read_bytes())
    (tmp_path / "activations-a" / f"{'a' * 32}.safetensors").symlink_to(entry)
    (tmp_path / "activations-a" / f"{'b' * 32}.safetensors").mkdir()
    being_written = tmp_path / "activations-a" / f"{HEX}.safetensors.{HEX}.partial"
    being_written.write_bytes(b"")
    assert {found.path for found in entries(tmp_path)} == {entry, other}
    (found,) = [found for found in entries(tmp_path) if found.path == other]
    with pytest.raises(LookupError):
        found.about()
    os.utime(being_written, (time.time() - 2 * DAY,) * 2)  # nobody is writing it any more
    (left,) = [found for found in entries(tmp_path) if found.path == being_written]
    assert left.is_left
    assert left.is_damaged()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_looking_for_damage_is_no_use_of_an_entry(entry: Path, tmp_path: Path, damage: str) -> None:
    os.utime(entry, (5, 5))
    (whole,) = entries(tmp_path)
    assert not whole.is_damaged()
    assert entry.stat().st_mtime == 5
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content[:-1] if damage == "cut" else content)
    (damaged,) = entries(tmp_path)
    assert damaged.is_damaged()
    assert (damaged.about() is None) == (damage == "cut")


@given(sizes=st.lists(st.integers(0, 50)), limit=st.integers(0, 200))
def test_the_first_go_until_the_others_fit(sizes: list[int], limit: int) -> None:
    found = [Entry(Path(str(n)), size, n) for n, size in enumerate(sizes)]
    gone = above(found, limit)
    assert gone == found[: len(gone)]
    assert sum(sizes[len(gone) :]) <= limit
    assert not gone or sum(sizes[len(gone) - 1 :]) > limit
