"""Axes on which arms can be told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_plugins.study.axes import Cut, cut, farthest_near

NEAR = {"l1": [0.88, 0.95, 0.98], "a": [0.9, 0.96, 0.99], "b": [0.74, 0.84, 0.92]}


def test_an_arm_far_from_all_others_is_off_the_axis():
    found = cut({**NEAR, "untrained": [-0.02, 0.01]}, "l1")
    assert found is not None
    assert found.off == {"untrained": (-0.02, 0.01)}
    assert found.low == pytest.approx(0.74 - 0.08 * 0.25)
    assert found.high == pytest.approx(0.99 + 0.08 * 0.25)


@pytest.mark.parametrize("values", [NEAR, {"a": [1.0, 2.0]}, {"l1": [0.5]}, {}])
def test_an_axis_on_which_all_can_be_told_apart_is_not_cut(values: dict[str, list[float]]):
    assert cut(values, "l1") is None


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1),
        st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5),
        min_size=1,
        max_size=8,
    )
)
def test_every_arm_is_on_the_axis_or_named(values: dict[str, list[float]]):
    reference = next(iter(values))
    found = cut(values, reference)
    if found is None:
        return
    assert isinstance(found, Cut)
    assert len(found.off) < len(values)
    for arm, ys in values.items():
        assert arm in found.off or found.low <= min(ys) <= max(ys) <= found.high


def test_few_arms_are_never_far():
    assert farthest_near([]) is None
    assert farthest_near([1.0, 100.0]) is None  # which of the two is usual, nobody knows
    assert farthest_near([1.0, 1.0, 100.0]) == 1.0
