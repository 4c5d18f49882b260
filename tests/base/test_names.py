"""Names of files: any disk takes them, and two names share none where that matters."""

from __future__ import annotations

import re

import pytest

from sae_plugins.base.names import file_name, own_file_name

NAMES = [
    *("reorder", "input-norm-l1", "a.b", "L0-20", "x" * 60, "reorder+merge", "SmolLM2_135M"),
    *("..", ".", "", "/", ".hidden", "a b", "a/b", "a-b", "a--b", "a-b-", "é", "ü", "x" * 61),
    *("x" * 60 + "y", "x" * 60 + "z", "unnamed", "cost $x^$", "n\0", "a\nb"),
]


def test_names_that_are_fine_stay():
    for name in NAMES[:7]:
        assert own_file_name(name) == file_name(name) == name


@pytest.mark.parametrize("called", [file_name, own_file_name])
def test_any_disk_takes_them(called):
    for name in NAMES:
        assert re.fullmatch(r"\w[\w.+-]{0,79}", called(name), re.ASCII)


def test_no_two_names_share_one():
    names = {own_file_name(name) for name in NAMES}
    assert len(names) == len(NAMES)
    again = {*NAMES, *names}  # names that look like those of others
    assert len({own_file_name(name) for name in again}) == len(again)


def test_what_is_shown_of_names_today():
    assert file_name("google/gemma-2-2b") == "google-gemma-2-2b"
    assert file_name("gpt2-small-res-jb:blocks.1.hook_resid_pre") == (
        "gpt2-small-res-jb-blocks.1.hook_resid_pre"
    )
    assert file_name("l1_coefficient=0.5") == "l1_coefficient-0.5"
    assert own_file_name("learning_rates_world") == "learning_rates_world"
