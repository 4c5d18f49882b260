"""Ranks that are forked end, or say where they stand."""

from __future__ import annotations

import gc
import os
import time

import pytest

from sae_plugins.framework.forked import Crashed, on_ranks


def stands_still() -> None:
    time.sleep(60)


def test_a_rank_that_does_not_end_says_where_it_stands() -> None:
    with pytest.raises(Crashed, match=r"(?s)rank 0: it did not end within 1 s.*in stands_still"):
        on_ranks(1, stands_still, 1)


class Garbage:
    """It refers to itself, so that a search for garbage finds it, and waits for who made it."""

    def __init__(self) -> None:
        self.itself, self.made_by = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.made_by:
            stands_still()


def test_garbage_of_the_process_that_forks_stops_no_rank() -> None:
    Garbage()
    assert len(on_ranks(2, gc.collect, 5)) == 2
