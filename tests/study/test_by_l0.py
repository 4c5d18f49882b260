"""Differences at single L0s, and where they are the other way round than on average."""

from __future__ import annotations

import pytest
import scipy.stats

from sae_plugins.study.by_l0 import AtL0, by_l0, exception
from sae_plugins.study.statistics import Better, Comparison, Point, Question, compare

EXACT = (8.0, 16.0, 32.0)
NOISE = (-0.01, 0.0, 0.01)


def arm(
    gaps: dict[float, float], times: float = 1.0, noise: tuple[float, ...] = NOISE
) -> list[Point]:
    """SAEs of three seeds, whose scores are a seed's own, and a gap at each L0."""
    return [
        Point(seed, l0 * times, 0.1 * seed + gap + at_seed)
        for seed, at_seed in enumerate(noise)
        for l0, gap in gaps.items()
    ]


REFERENCE = arm(dict.fromkeys(EXACT, 0.0), noise=(0, 0, 0))


def test_exact_l0s_have_the_paired_difference_and_its_t_interval() -> None:
    found = by_l0(Question(arm({8: -0.1, 16: 0.2, 32: 0.3}), REFERENCE, "higher", exact=True))
    assert [at.l0 for at in found] == pytest.approx(EXACT)
    assert [at.difference for at in found] == pytest.approx([-0.1, 0.2, 0.3])
    half = scipy.stats.t.isf(0.025, 2) * 0.01 / 3**0.5
    assert found[0].interval == pytest.approx((-0.1 - half, -0.1 + half))
    assert {at.n for at in found} == {3}


def test_an_exact_l0_that_one_arm_lacks_is_left_out() -> None:
    some = [point for point in arm({8: 0.1, 16: 0.1}) if (point.seed, point.l0) != (0, 16)]
    found = by_l0(Question(some, REFERENCE, "higher", exact=True))
    assert [(round(at.l0), at.n) for at in found] == [(8, 3), (16, 2)]


def test_measured_l0s_stand_at_the_ends_and_in_the_middle_of_what_all_seeds_cover() -> None:
    # seed by seed a little denser, so that all cover 8 * 1.1 to 32
    denser = [Point(p.seed, p.l0 * (1 + 0.05 * p.seed), p.value) for p in REFERENCE]
    found = by_l0(Question(arm({8: 0.1, 16: 0.1, 32: 0.1}), denser, "higher"))
    low, high = 8.8, 32.0
    assert [at.l0 for at in found] == pytest.approx([low, (low * high) ** 0.5, high])
    assert found[1].difference == pytest.approx(0.1)
    (only,) = by_l0(Question(arm({16: 0.1}), REFERENCE, "higher"))
    assert only.l0 == pytest.approx(16)


def test_nothing_in_common_is_no_difference() -> None:
    assert by_l0(Question(arm({100: 0.1}), REFERENCE, "higher", exact=True)) == []
    assert by_l0(Question(arm({100: 0.1}), REFERENCE, "higher")) == []
    assert by_l0(Question([], REFERENCE, "higher")) == []
    (alone,) = by_l0(Question(arm({8: 0.1}, noise=(0.0,)), REFERENCE, "higher", exact=True))
    assert alone.interval is None


@pytest.mark.parametrize(("better", "word"), [("higher", "worse"), ("lower", "better")])
def test_an_arm_that_is_better_on_average_may_be_worse_at_one_l0(better: Better, word: str) -> None:
    question = Question(arm({8: -0.1, 16: 0.2, 32: 0.3}), REFERENCE, better, exact=True)
    mean = compare({0: question})[0]
    assert mean.difference is not None
    assert mean.difference > 0
    assert exception(mean, better, by_l0(question)) == f"but {word} at an L0 of 8"


def test_what_may_be_chance_or_has_the_sign_of_the_average_is_no_exception() -> None:
    mean = Comparison("better", 3, difference=0.1)
    unclear, same = AtL0(8, 3, -0.1, (-0.3, 0.1)), AtL0(16, 3, 0.1, (0.05, 0.15))
    assert exception(mean, "higher", [unclear, same, AtL0(32, 1, -0.1, None)]) == ""
    assert exception(Comparison("no verdict", 3, difference=-0.1), "higher", [same]) == ""
    behind = [AtL0(l0, 3, -0.1, (-0.15, -0.05)) for l0 in (4, 5.5, 8)]
    assert exception(mean, "higher", behind) == "but worse at an L0 of 4, 5.5 and 8"
