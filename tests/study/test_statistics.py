"""Verdicts: what is compared with what, when there is none, and what they do not depend on."""

from __future__ import annotations

import gc
import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from sae_plugins.study.power import detectable_effect
from sae_plugins.study.statistics import (
    Comparison,
    Point,
    Question,
    compare,
    differences,
    frontier,
    within_seed_interval,
)

Arm = list[Point]
few = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage in every correction, which takes a while where torch is."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def arm(*scores: float, l0: float = 10.0) -> Arm:
    """One SAE per seed, all with the same L0."""
    return [Point(seed, l0, score) for seed, score in enumerate(scores)]


def only(
    one: Arm, reference: Arm, better: str = "higher", margin: float | None = None
) -> Comparison:
    """The one comparison of a study."""
    return compare({0: Question(one, reference, better, margin)})[0]  # type: ignore[arg-type]


def close(found: object, expected: object) -> bool:
    return found == pytest.approx(expected, rel=1e-6, abs=1e-9)


scores = st.floats(-10, 10).map(lambda x: round(x, 3))


@st.composite
def arms(draw: st.DrawFn) -> tuple[Arm, Arm]:
    """Two arms of the same seeds, with one to four SAEs each that cover L0 20 at least."""
    pair: tuple[Arm, Arm] = ([], [])
    for seed in range(draw(st.integers(2, 6))):
        for points in pair:
            others = draw(st.lists(st.integers(0, 59), max_size=2, unique=True))
            for l0 in (5, 60, *(10 + 0.5 * other for other in others)):
                points.append(Point(seed, l0, draw(scores)))
    return pair


# -- at equal L0 -------------------------------------------------------------------------------


def test_scores_are_interpolated_in_log_l0() -> None:
    # scores are log2(L0): at L0 20 the reference has log2(20), by its SAEs at 10 and 40
    reference = [Point(0, l0, math.log2(l0)) for l0 in (10, 40)]
    found = differences([Point(0, 20, math.log2(20) + 0.5)], reference)
    assert close(found.by_seed, {0: 0.5})
    assert close(found.l0, (20, 20))


def test_a_difference_is_the_mean_gap_over_the_common_range_of_log_l0() -> None:
    # the gap is 0 from L0 10 to 20, then rises to 1 at L0 40; L0 5 and 80 are not common
    one = [Point(0, 5, 99.0), Point(0, 10, 0.0), Point(0, 20, 0.0), Point(0, 40, 1.0)]
    reference = [Point(0, 10, 0.0), Point(0, 80, 0.0)]
    found = differences(one, reference)
    assert close(found.by_seed, {0: 0.25})
    assert close(found.l0, (10, 40))


def test_moving_along_the_frontier_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    reference, denser = [], []
    for seed in range(5):
        for l0 in (10, 20, 40):
            reference.append(Point(seed, l0, math.log(l0) + 0.01 * rng.normal()))
            denser.append(Point(seed, 2 * l0, math.log(2 * l0) + 0.01 * rng.normal()))
    found = only(denser, reference)
    assert found.verdict == "not distinguishable"
    assert close(found.l0, (20, 40))


def test_saes_with_the_same_l0_are_compared_there() -> None:
    """TopK with one k."""
    found = only(arm(0.6, 0.7, 0.8, 0.9, 1.0), arm(0.1, 0.21, 0.32, 0.43, 0.54))
    assert (found.verdict, found.n) == ("better", 5)
    assert close(found.difference, 0.48)
    assert close(found.l0, (10, 10))


def test_frontiers_that_miss_each_other_by_less_than_can_be_measured_touch() -> None:
    assert close(differences(arm(3, l0=40.0), arm(1, l0=39.8)).by_seed, {0: 2})
    assert differences(arm(3, l0=40.0), arm(1, l0=39.0)).apart == (0,)


def test_saes_of_one_l0_are_averaged() -> None:
    reference = [Point(0, 10, 1.0), Point(0, 10, 3.0), Point(0, 20, 5.0)]
    assert close(differences([Point(0, 10, 0.0)], reference).by_seed, {0: -2})


@pytest.mark.parametrize(
    "broken",
    [Point(1, 0.0, 0.5), Point(1, math.nan, 0.5), Point(1, math.inf, 0.5), Point(1, 9, math.nan)],
)
def test_saes_without_l0_or_score_are_left_out_and_named(broken: Point) -> None:
    reference = arm(0.1, 0.22, 0.3, 0.4, 0.5)
    one = [replace(point, value=point.value + 0.5 + 0.001 * point.seed) for point in reference]
    found = only([*one, broken], reference)
    assert replace(found, warnings=()) == only(one, reference)
    assert found.warnings == ("SAEs left out: 1, with an L0 of 0 or no score",)
    # where a seed has no other SAE, it may not be dropped silently: its arm failed there
    alone = only([broken if p.seed == 1 else p for p in one], reference)
    assert alone.verdict == "no verdict"
    assert "seed 1" in str(alone.reason)


# -- verdicts ----------------------------------------------------------------------------------

HIGH, LOW = (0.81, 0.83, 0.80, 0.82, 0.84), (0.61, 0.62, 0.61, 0.60, 0.63)


@pytest.mark.parametrize(
    ("one", "reference", "better", "verdict"),
    [
        (HIGH, LOW, "higher", "better"),
        (HIGH, LOW, "lower", "worse"),
        (LOW, HIGH, "higher", "worse"),
        (LOW, HIGH, "lower", "better"),
        (HIGH, (0.9, 0.7, 0.85, 0.75, 0.9), "higher", "not distinguishable"),
    ],
)
def test_a_verdict_has_the_direction_of_the_metric(
    one: tuple[float, ...], reference: tuple[float, ...], better: str, verdict: str
) -> None:
    assert only(arm(*one), arm(*reference), better).verdict == verdict


def test_it_is_the_paired_t_test_of_the_papers() -> None:
    found = only(arm(*HIGH), arm(*LOW))
    expected = scipy.stats.ttest_rel(HIGH, LOW)
    assert close(found.p, expected.pvalue)
    assert close(found.interval, tuple(expected.confidence_interval(0.95)))
    gaps = np.subtract(HIGH, LOW)
    assert close(found.sd, gaps.std(ddof=1))
    assert close(found.effect_size, gaps.mean() / gaps.std(ddof=1))


def test_all_tests_of_a_study_are_one_family() -> None:
    rng = np.random.default_rng(1)
    contrasts = {
        name: Question(arm(*rng.normal(shift, 1, 5)), arm(*rng.normal(0, 1, 5)), "higher")
        for name, shift in {"a": 0, "b": 3, "c": 9, "d": -30}.items()
    }
    found = compare({**contrasts, "apart": Question(arm(1, 2), arm(1, 2, l0=99), "higher")})
    tested = [found[name] for name in contrasts]
    p = [comparison.p for comparison in tested]
    assert close([c.p_holm for c in tested], list(multipletests(p, method="holm")[1]))
    for comparison in tested:
        significant = comparison.p_holm is not None and comparison.p_holm <= 0.05
        assert (comparison.verdict != "not distinguishable") == significant
        assert comparison.sd is not None
        detectable = comparison.sd * detectable_effect(5, 0.05 / 4)
        assert close(comparison.smallest_detectable, detectable)


def test_the_correction_can_take_a_verdict_back() -> None:
    borderline = (arm(0.3, 0.1, 0.2, 0.25, 0.02), arm(0, 0, 0, 0, 0))
    assert only(*borderline).verdict == "better"
    noise = (arm(1, 2, 3, 4, 5), arm(5, 4, 3, 2, 1))
    pairs = (borderline, noise, noise)
    among = compare({place: Question(*pair, "higher") for place, pair in enumerate(pairs)})
    assert among[0].verdict == "not distinguishable"
    assert among[0].interval is not None
    assert among[0].interval[0] > 0


# differences of 5 seeds: a mean of .0005 and a standard deviation of .0008
SMALL = (-0.0005, 0.0, 0.0005, 0.001, 0.0015)


def test_a_difference_that_is_shown_to_be_smaller_than_the_margin_is_equivalent() -> None:
    found = only(arm(*SMALL), arm(*np.zeros(5)), margin=0.01)
    assert (found.verdict, found.negligible) == ("equivalent", True)
    low, high = (
        scipy.stats.ttest_1samp(SMALL, bound, alternative=side).pvalue
        for bound, side in ((-0.01, "greater"), (0.01, "less"))
    )
    assert close(found.p_equivalence, max(low, high))
    assert only(arm(*SMALL), arm(*np.zeros(5))).verdict == "not distinguishable", "without a margin"


def test_a_difference_that_is_there_is_a_verdict_and_its_smallness_is_said() -> None:
    one = arm(0.002, 0.0021, 0.0019, 0.002, 0.0022)
    found = only(one, arm(*np.zeros(5)), margin=0.01)
    assert (found.verdict, found.negligible) == ("better", True)
    assert found.warnings == ("the difference is there, and smaller than the margin of 0.01",)


def test_a_study_that_may_miss_a_difference_that_matters_is_underpowered() -> None:
    """Two seeds of an untrained SAE, plainly worse: nobody may read that it is like the others."""
    untrained, reference = arm(-0.25, -0.10), arm(0.50, 0.61)
    others = {n: Question(arm(0.5, 0.6), arm(0.51, 0.58), "higher", 0.01) for n in range(7)}
    found = compare({"": Question(untrained, reference, "higher", 0.01), **others})  # type: ignore[dict-item]
    assert close(found[""].difference, -0.73)
    assert {one.verdict for one in found.values()} == {"underpowered"}
    assert all(one.smallest_detectable > 0.01 for one in found.values())  # type: ignore[operator]


def test_without_a_margin_a_study_that_can_find_nothing_is_underpowered() -> None:
    questions = {n: Question(arm(-0.25, -0.10), arm(0.50, 0.61), "higher") for n in range(8)}
    assert {one.verdict for one in compare(questions).values()} == {"underpowered"}, "92 SD"
    noise = {n: Question(arm(0.5, 0.6), arm(0.51, 0.58), "higher") for n in range(2)}
    assert {one.verdict for one in compare(noise).values()} == {"not distinguishable"}, "23 SD"


def test_a_study_that_would_find_a_difference_that_matters_is_not_underpowered() -> None:
    gaps = (-0.0005, 0.0015, 0.0035, 0.0055, 0.0075)  # a mean of .0035, a deviation of .0032
    found = only(arm(*gaps), arm(*np.zeros(5)), margin=0.0057)
    assert found.smallest_detectable is not None
    assert found.smallest_detectable < 0.0057
    assert (found.verdict, found.negligible) == ("not distinguishable", False)


def test_saes_that_are_equal_are_equivalent_where_there_is_a_margin() -> None:
    found = only(arm(*HIGH), arm(*HIGH), margin=0.01)
    assert (found.verdict, found.p, found.p_equivalence) == ("equivalent", 1.0, 0.0)


def test_tests_of_equivalence_are_a_family_of_their_own() -> None:
    rng = np.random.default_rng(2)
    margins = (0.5, 1.0, 2.0, None)
    questions = {
        margin: Question(arm(*rng.normal(0, 0.3, 6)), arm(*np.zeros(6)), "higher", margin)
        for margin in margins
    }
    found = compare(questions)
    with_margin = [one for margin, one in found.items() if margin is not None]
    p = [one.p_equivalence for one in with_margin]
    corrected = [one.p_equivalence_holm for one in with_margin]
    assert close(corrected, list(multipletests(p, method="holm")[1]))
    assert found[None].p_equivalence_holm is None
    differences = [one.p for one in found.values()]
    holm = list(multipletests(differences, method="holm")[1])
    assert close([one.p_holm for one in found.values()], holm), "margins cost no power"


def test_no_verdict_without_common_l0_in_every_seed() -> None:
    reference = arm(0.1, 0.2, 0.3, 0.4, 0.5)
    one = [replace(point, value=point.value + 1) for point in reference]
    one[2] = replace(one[2], l0=50)
    found = only(one, reference)
    assert (found.verdict, found.n, found.p) == ("no verdict", 4, None)
    assert found.reason == (
        "no common L0 in seed 2: the arm's is 10 to 50, the reference's 10; add sparsities "
        "between them"
    )


def test_a_metric_that_is_undefined_somewhere_says_so() -> None:
    reference = arm(0.1, 0.2, 0.3)
    one = [replace(point, value=point.value + 1) for point in reference]
    one[1] = replace(one[1], value=math.nan)
    for pair in ((one, reference), (reference, one)):
        found = only(*pair)
        assert found.verdict == "no verdict"
        assert found.reason == "it is undefined for the SAEs of seed 1"


def test_a_metric_may_take_more_seeds_for_a_verdict() -> None:
    two, three = arm(1, 2), arm(1, 2, 4)
    found = compare({n: Question(one, arm(0, 0, 0)[:n], "higher", None, 3)
                     for n, one in ((2, two), (3, three))})  # fmt: skip
    assert found[2].reason == "2 seeds in common: it takes three at least"
    assert found[3].p is not None


def test_no_verdict_with_one_seed_and_a_warning_with_few() -> None:
    alone = only(arm(1.0), arm(2.0))
    assert alone.reason == "1 seed in common: it takes two at least"
    assert (alone.verdict, alone.difference, alone.interval) == ("no verdict", -1, None)
    assert only([], arm(2.0)).verdict == "no verdict"
    four = only(arm(1, 2, 3, 5), arm(2, 3, 4, 5))
    assert four.warnings == ("4 seeds: fewer than 5 find large differences only",)
    assert only(arm(1, 2, 3, 5, 6), arm(2, 3, 4, 5, 6)).warnings == ()


def test_seeds_of_one_arm_only_are_left_out_and_named() -> None:
    found = only(arm(*HIGH, 0.9), arm(*LOW))
    assert found.warnings == ("seed 5 left out: SAEs of one of the two arms only",)
    assert replace(found, warnings=()) == only(arm(*HIGH), arm(*LOW))


@pytest.mark.parametrize("rounding", [0.0, 1e-8])
def test_saes_that_are_equal_are_not_distinguishable(rounding: float) -> None:
    """A permutation of features changes no score, though float32 may round it differently."""
    one = arm(*(score + rounding * (1 + seed) for seed, score in enumerate(HIGH)))
    found = only(one, arm(*HIGH))
    assert (found.verdict, found.p, found.p_holm) == ("not distinguishable", 1.0, 1.0)
    assert found.warnings == ("the scores are equal in every seed",)


def test_no_verdict_where_all_seeds_differ_by_the_same() -> None:
    """For example, a count of dead latents."""
    found = only(arm(3, 3, 3, 3, 3), arm(1, 1, 1, 1, 1), "lower")
    assert (found.verdict, found.difference, found.p) == ("no verdict", 2.0, None)
    assert "the same 2" in str(found.reason)


def test_a_comparison_can_be_written_as_json() -> None:
    comparisons = [
        only(arm(*HIGH), arm(*LOW)),
        only(arm(1, 1), arm(1, 1)),
        only(arm(1), arm(1, l0=99)),
        only(arm(3, 3), arm(1, 1)),
    ]
    for comparison in comparisons:
        written = json.dumps(asdict(comparison), allow_nan=False)
        fields = json.loads(written)
        fields["warnings"] = tuple(fields["warnings"])
        for name in ("interval", "l0"):
            fields[name] = fields[name] and tuple(fields[name])
        assert Comparison(**fields) == comparison


# -- what verdicts do not depend on ------------------------------------------------------------


@few
@given(arms())
def test_exchanging_the_arms_turns_the_difference_round(pair: tuple[Arm, Arm]) -> None:
    one, other = only(*pair), only(*pair[::-1])
    turned = {"better": "worse", "worse": "better"}
    assert other.verdict == turned.get(one.verdict, one.verdict)
    assert one.difference is not None
    assert close(other.difference, -one.difference)
    if one.interval is not None:
        assert close(other.interval, (-one.interval[1], -one.interval[0]))
    assert (other.p, other.l0) == (pytest.approx(one.p), one.l0)


@few
@given(arms(), st.randoms())
def test_the_order_of_saes_does_not_matter(pair: tuple[Arm, Arm], rng: random.Random) -> None:
    shuffled = [rng.sample(points, len(points)) for points in pair]
    assert only(*shuffled) == only(*pair)


@few
@given(arms(), scores)
def test_a_shift_of_both_arms_does_not_matter(pair: tuple[Arm, Arm], by: float) -> None:
    shifted = [[replace(p, value=p.value + by) for p in points] for points in pair]
    one, other = differences(*pair), differences(*shifted)
    assert close(other.by_seed, one.by_seed)


@few
@given(arms(), scores)
def test_a_constant_on_one_arm_moves_its_differences_by_it(
    pair: tuple[Arm, Arm], by: float
) -> None:
    shifted = [replace(point, value=point.value + by) for point in pair[0]]
    moved = differences(shifted, pair[1]).by_seed
    assert close(moved, {s: d + by for s, d in differences(*pair).by_seed.items()})


@few
@given(arms(), st.floats(0.001, 1000), st.booleans())
def test_the_unit_of_a_metric_does_not_matter(
    pair: tuple[Arm, Arm], unit: float, flipped: bool
) -> None:
    factor = -unit if flipped else unit
    scaled = [[replace(p, value=p.value * factor) for p in points] for points in pair]
    one, other = only(*pair), only(*scaled, better="lower" if flipped else "higher")
    assert one.difference is not None
    assert close(other.difference, one.difference * factor)
    assert (other.verdict, other.p) == (one.verdict, pytest.approx(one.p))


@few
@given(arms(), st.floats(0.1, 10))
def test_the_unit_of_l0_does_not_matter(pair: tuple[Arm, Arm], unit: float) -> None:
    scaled = [[replace(p, l0=p.l0 * unit) for p in points] for points in pair]
    assert close(differences(*scaled).by_seed, differences(*pair).by_seed)


@few
@given(arms(), st.floats(0.01, 30))
def test_equivalent_is_what_has_its_90_percent_interval_within_the_margin(
    pair: tuple[Arm, Arm], margin: float
) -> None:
    found, gaps = only(*pair, margin=margin), list(differences(*pair).by_seed.values())
    if found.sd:
        low, high = scipy.stats.ttest_1samp(gaps, 0).confidence_interval(0.90)
        assert found.negligible == (-margin < low and high < margin)
        assert (found.verdict == "equivalent") == (found.negligible and found.p > 0.05)  # type: ignore[operator]


@few
@given(arms(), st.floats(0.01, 30))
def test_a_margin_makes_no_difference_to_better_and_worse(
    pair: tuple[Arm, Arm], margin: float
) -> None:
    without, found = only(*pair), only(*pair, margin=margin)
    same = {"better", "worse", "no verdict"}
    assert ({found.verdict, without.verdict} & same == set()) or found.verdict == without.verdict
    assert (found.p, found.interval) == (without.p, without.interval)


@few
@given(arms())
def test_p_and_interval_are_those_of_the_seeds_differences(pair: tuple[Arm, Arm]) -> None:
    found, gaps = only(*pair), list(differences(*pair).by_seed.values())
    if found.sd:
        expected = scipy.stats.ttest_rel(gaps, np.zeros(len(gaps)))
        assert (found.p, found.n) == (pytest.approx(expected.pvalue), len(gaps))
        assert close(found.interval, tuple(expected.confidence_interval(0.95)))


# -- within a seed, and for figures ------------------------------------------------------------


def test_the_interval_within_a_seed_is_about_its_items() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.1, 26).tolist()
    interval = within_seed_interval(values, rng_seed=0)
    assert interval is not None
    expected = scipy.stats.t.interval(0.95, 25, np.mean(values), scipy.stats.sem(values))
    assert interval == pytest.approx(expected, abs=0.01)
    assert within_seed_interval(values, rng_seed=0) == interval
    assert within_seed_interval([0.5, 0.5, 0.5], rng_seed=0) == (0.5, 0.5)
    assert within_seed_interval([0.5], rng_seed=0) is None


def test_a_frontier_is_the_mean_over_seeds_where_all_have_l0() -> None:
    points = [Point(s, l0, s + math.log2(l0)) for s in range(3) for l0 in (10 - s, 20, 40 + s)]
    found = frontier(points, size=3)
    assert found is not None
    assert close(found.l0, (10, 20, 40))
    assert close(found.mean, tuple(1 + math.log2(l0) for l0 in (10, 20, 40)))
    low, high = scipy.stats.t.interval(0.95, 2, 1, 1 / math.sqrt(3))
    assert close((found.low[1], found.high[1]), (low + math.log2(20), high + math.log2(20)))


def test_a_frontier_of_one_seed_has_no_interval_and_one_without_common_l0_is_none() -> None:
    alone = frontier([Point(0, 10, 1.0), Point(0, 20, 2.0)], size=2)
    assert alone is not None
    assert close(alone.mean, (1, 2))
    assert all(map(math.isnan, alone.low + alone.high))
    assert frontier([Point(0, 10, 1.0), Point(1, 20, 2.0)]) is None
    assert frontier([]) is None
    top_k = frontier(arm(1, 3))
    assert top_k is not None
    assert close((*top_k.l0, *top_k.mean), (10, 2))


def test_grids_that_differ_are_warned_about() -> None:
    def arm(l0s: list[float]) -> list[Point]:
        return [Point(s, l0, l0 + s / 10 + l0 * s / 99) for s in range(5) for l0 in l0s]

    def warnings(l0s: list[float]) -> str:
        found = only(arm(l0s), arm([8, 16, 32]))
        return " ".join(found.warnings)

    assert "straight line" not in warnings([8.2, 15.5, 31])
    assert "seeds 0, 1, 2, 3, 4: the arms have SAEs at different L0" in warnings([8, 32])
    assert "less than half of either arm's L0" in warnings([29, 60, 90])
    assert "less than half" not in warnings([8.2, 15.5, 31])
