"""Into how many tasks work is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_plugins.study.tasks import cut, pieces


@given(st.lists(st.integers(), max_size=40), st.integers(1, 50))
def test_a_cut_loses_nothing_and_has_no_empty_group(items: list[int], count: int) -> None:
    groups = cut(items, count)
    assert sorted(item for group in groups for item in group) == sorted(items)
    assert all(groups)
    assert max(map(len, groups), default=0) - min(map(len, groups), default=0) <= 1


@given(st.integers(1, 20), st.integers(1, 60), st.floats(0, 50), st.integers(1, 32))
def test_no_other_number_of_pieces_ends_much_sooner(
    passes: int, items: int, shared: float, workers: int
) -> None:
    def takes(count: int) -> float:
        return -(-passes * count // workers) * (shared + -(-items // count))

    best = min(takes(count) for count in range(1, items + 1))
    assert takes(pieces(passes, items, shared, workers)) <= 1.1 * best + 1e-9


@pytest.mark.parametrize(
    ("passes", "items", "shared", "workers", "count"),
    [
        (5, 36, 8.0, 1, 1),  # one worker: nothing is done twice
        (1, 117, 0.6, 2, 2),  # a toy's pilots
        (3, 36, 0.0, 3, 1),
        (3, 36, 1000.0, 8, 1),  # where the language model is all, no SAE gains by a task of its own
        (0, 0, 1.0, 4, 1),
    ],
)
def test_known_cuts(passes: int, items: int, shared: float, workers: int, count: int) -> None:
    assert pieces(passes, items, shared, workers) == count
