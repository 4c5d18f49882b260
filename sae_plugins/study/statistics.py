"""Is an arm better than the reference arm? Pure functions from scores to verdicts.

What is estimated: the mean vertical gap between the frontiers of two arms, score against log L0,
over the L0 that both cover. A method that makes SAEs denser moves along a frontier, and most scores
follow L0; only the gap at equal L0 says that the method helps. L0 counts by its logarithm because
the sparsities of a sweep are spread that way. Where frontiers cross, the gap is their balance.

What is a sample: a seed. SAEs of one seed share data and initial weights, so each seed gives one
difference, and these are what a t test is made for. The letters, pairs or datasets of a suite are
no samples of training: they are averaged within a seed, and bootstrapped (`within_seed_interval`)
only to tell how far a mean over such items can be trusted. The paired t test over seeds is also
what the papers report.

What is a verdict: Holm's correction over all tests of a family at once keeps the chance of any
wrong "better" or "worse" in it below 5%. "Equivalent" is a claim of its own, which needs a
margin, the smallest difference that matters: two one-sided tests show that the difference is
smaller, and Holm's correction over all of these keeps the chance of any wrong "equivalent" below
5%, too. Where neither is shown, `smallest_detectable` says what the study could have missed:
if that is more than the margin (without one, more than 30 standard deviations of the seeds'
differences), the verdict is "underpowered", else "not distinguishable".
Intervals are of one contrast each, without a correction, so one may exclude zero without a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import scipy.stats
from scipy.integrate import trapezoid
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from sae_plugins.study import ENOUGH_SEEDS
from sae_plugins.study.power import ALPHA, HOPELESS, detectable_effect

Better = Literal["higher", "lower"]
Verdict = Literal[
    "better", "worse", "equivalent", "not distinguishable", "underpowered", "no verdict"
]
K = TypeVar("K", bound=Hashable)

CONFIDENCE = 0.95
SAME_L0 = math.log(1.01)
"""Frontiers that miss each other by this much of log L0 touch: no evaluation measures L0 better."""
NEAR_L0 = math.log(1.15)
"""Where one arm has an SAE and the other none this near, its score is read off a chord."""
_NUMBERS = {2: "two", 3: "three"}
ROUNDING = 1e-6
"""Differences below this share of the scores are no differences: SAEs compute in float32."""


@dataclass(frozen=True)
class Point:
    """One trained SAE's score on one metric."""

    seed: int
    l0: float
    value: float

    @property
    def usable(self) -> bool:
        """Whether it has an L0 and a score."""
        return self.l0 > 0 and math.isfinite(self.l0) and math.isfinite(self.value)


class Question(NamedTuple):
    """What is compared: an arm's SAEs with the reference's, on one metric."""

    arm: Sequence[Point]
    reference: Sequence[Point]
    better: Better
    margin: float | None = None
    """The smallest difference that matters; without one, nothing is called equivalent."""
    least_seeds: int = 2
    """So many seeds have a spread that a verdict can be judged by."""
    exact: bool = False
    """SAEs have exactly these L0s, so that no score is read between two of them."""


@dataclass(frozen=True)
class Differences:
    """What two arms differ by at equal L0."""

    by_seed: dict[int, float]
    """Arm minus reference, mean over the common range of log L0; seeds in ascending order."""
    l0: tuple[float, float] | None
    """The lowest and the highest L0 at which any seed was compared."""
    apart: tuple[int, ...]
    """Seeds whose frontiers have no common L0."""
    unpaired: tuple[int, ...]
    """Seeds of one arm only."""
    unusable: int
    """SAEs left out, because their L0 is not positive or a number is not finite."""
    chords: tuple[int, ...] = ()
    """Seeds in which an SAE of one arm has none of the other near its L0."""
    slivers: tuple[int, ...] = ()
    """Seeds whose common range is less than half of either arm's."""
    fewer: tuple[int, ...] = ()
    """Seeds in which one arm lacks some of the exact L0s of the other."""
    lacking: tuple[float, ...] = ()
    """These L0s."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the reference, on one metric; None where there is nothing to be said."""

    verdict: Verdict
    n: int
    """Seeds that were compared."""
    difference: float | None = None
    """Arm minus reference at equal L0, mean over seeds."""
    interval: tuple[float, float] | None = None
    """95% t interval of the difference."""
    sd: float | None = None
    """Standard deviation of the seeds' differences."""
    effect_size: float | None = None
    """d_z: difference / sd. The sd is of paired differences, so it is no Cohen's d of groups."""
    p: float | None = None
    """Of the two-sided paired t test."""
    p_holm: float | None = None
    """Corrected for all tests that were made together."""
    smallest_detectable: float | None = None
    """The true difference found with 80% power at Holm's strictest level, if sd is the true one."""
    l0: tuple[float, float] | None = None
    """The lowest and the highest L0 at which any seed was compared."""
    reason: str | None = None
    """Of no verdict."""
    warnings: tuple[str, ...] = ()
    margin: float | None = None
    """The smallest difference that matters."""
    p_equivalence: float | None = None
    """Of two one-sided paired t tests: that the difference is smaller than the margin."""
    p_equivalence_holm: float | None = None
    """Corrected for all tests of equivalence that were made together."""

    @property
    def is_small(self) -> bool:
        """Whether the difference that was measured is smaller than the margin."""
        if self.difference is None or self.margin is None:
            return False
        return abs(self.difference) < self.margin

    @property
    def negligible(self) -> bool:
        """Whether the difference is shown to be smaller than the margin."""
        return self.p_equivalence_holm is not None and self.p_equivalence_holm <= ALPHA


@dataclass(frozen=True)
class Frontier:
    """An arm's mean score against L0, for a figure."""

    l0: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    """Of the 95% t interval over seeds; NaN if there is one seed."""
    high: tuple[float, ...]


def differences(
    arm: Sequence[Point], reference: Sequence[Point], *, exact: bool = False
) -> Differences:
    """Compare two arms at equal L0, seed by seed.

    Scores are interpolated linearly in log L0, and SAEs of equal L0 are averaged. The mean over the
    common range is exact: the gap is linear between the L0 of the SAEs. An arm of one SAE per seed
    is compared at the L0 of that SAE. Arms with exact L0s are compared at those that both have.
    """
    arms, references = curves(arm), curves(reference)
    by_seed, ranges, apart = {}, [], []
    chords, slivers, fewer, lacking = [], [], [], set[float]()
    for seed in sorted(arms.keys() & references.keys()):
        pair = [arms[seed], references[seed]]
        if exact:
            whole, pair = pair, at_shared_l0s(pair)
            lost = {*whole[0][0], *whole[1][0]} - {*pair[0][0]}
            lacking |= lost
            fewer += [seed] if lost else []
        common = common_range(pair)
        if common is None:
            apart.append(seed)
        else:
            own, other = pair
            by_seed[seed] = _gap(own, other, *common)
            ranges.append(common)
            if _has_chords(pair, *common):
                chords.append(seed)
            if 2 * (common[1] - common[0]) < min(float(x[-1] - x[0]) for x, _ in pair):
                slivers.append(seed)
    return Differences(
        by_seed=by_seed,
        l0=_l0_range(ranges),
        apart=tuple(apart),
        unpaired=tuple(sorted(arms.keys() ^ references.keys())),
        unusable=sum(not point.usable for point in (*arm, *reference)),
        chords=tuple(chords),
        slivers=tuple(slivers),
        fewer=tuple(fewer),
        lacking=tuple(math.exp(x) for x in sorted(lacking)),
    )


def compare(questions: Mapping[K, Question]) -> dict[K, Comparison]:
    """Answer questions that are one family of Holm's.

    There is no verdict where some seed has no common L0: leaving that seed out would choose seeds
    by their outcome. There is none either where all seeds differ by the same amount other than
    zero, as a t test has no noise then to judge that amount by.
    """
    found = {key: _test(question) for key, question in questions.items()}
    differ = _holm({key: one.p for key, one in found.items()})
    equal = _holm({key: one.p_equivalence for key, one in found.items()})
    for key, p_holm in differ.items():
        one = replace(found[key], p_holm=p_holm, p_equivalence_holm=equal.get(key))
        if one.sd:
            detectable = one.sd * detectable_effect(one.n, ALPHA / len(differ))
            one = replace(one, smallest_detectable=detectable)
        verdict = _verdict(one, questions[key].better)
        if verdict in ("better", "worse") and one.negligible:
            note = f"the difference is there, and smaller than the margin of {one.margin:g}"
            one = replace(one, warnings=(*one.warnings, note))
        found[key] = replace(one, verdict=verdict)
    return found


def _holm(p: Mapping[K, float | None]) -> dict[K, float]:
    """Corrected p values of the tests that were made."""
    made = {key: value for key, value in p.items() if value is not None}
    if not made:
        return {}
    corrected = multipletests(list(made.values()), method="holm")[1]
    return dict(zip(made, map(float, corrected), strict=True))


def _verdict(found: Comparison, better: Better) -> Verdict:
    """What the corrected tests of a comparison come to."""
    if found.difference and found.p_holm is not None and found.p_holm <= ALPHA:
        return "better" if (found.difference > 0) == (better == "higher") else "worse"
    if found.negligible:
        return "equivalent"
    matters = HOPELESS * (found.sd or 0.0) if found.margin is None else found.margin
    if found.smallest_detectable is not None and found.smallest_detectable > matters:
        return "underpowered"
    return "not distinguishable"


def within_seed_interval(values: Sequence[float], rng_seed: int) -> tuple[float, float] | None:
    """95% bootstrap (BCa) interval of a mean over the items of one evaluation of one SAE.

    It is about these items (letters, pairs, datasets) and says nothing about another training.
    None if there are fewer than two.
    """
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return (values[0], values[0])
    found = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        random_state=np.random.default_rng(rng_seed),
    ).confidence_interval
    return (float(found.low), float(found.high))


def frontier(points: Sequence[Point], size: int = 50) -> Frontier | None:
    """The mean over seeds at `size` L0, evenly spaced in log L0, that all seeds cover.

    None if there is no such L0.
    """
    frontiers = [one for one in curves(points).values() if len(one[0])]
    common = common_range(frontiers)
    if common is None:
        return None
    low, high = common
    grid = np.linspace(low, high, size if high > low else 1)
    values = np.array([np.interp(grid, *one) for one in frontiers])
    mean, n = values.mean(axis=0), len(values)
    half = np.full_like(mean, np.nan)
    if n > 1:
        t = scipy.stats.t.isf((1 - CONFIDENCE) / 2, n - 1)
        half = t * values.std(axis=0, ddof=1) / math.sqrt(n)
    return Frontier(*(tuple(map(float, y)) for y in (np.exp(grid), mean, mean - half, mean + half)))


Curve = tuple[Any, Any]
"""A frontier of one seed: ascending log L0, and the scores there."""


def curves(points: Sequence[Point]) -> dict[int, Curve]:
    """Frontiers by seed; one without usable SAEs has no L0."""
    scores: dict[int, dict[float, list[float]]] = {}
    for point in points:
        of_seed = scores.setdefault(point.seed, {})
        if point.usable:
            of_seed.setdefault(math.log(point.l0), []).append(point.value)
    return {
        seed: (np.array(sorted(of_seed)), np.array([fmean(of_seed[x]) for x in sorted(of_seed)]))
        for seed, of_seed in scores.items()
    }


def at_shared_l0s(pair: Sequence[Curve]) -> list[Curve]:
    """Two curves, without the L0s that only one of them has."""
    (x, _), (y, _) = pair
    shared = np.intersect1d(x, y)
    return [(l0s[np.isin(l0s, shared)], scores[np.isin(l0s, shared)]) for l0s, scores in pair]


def common_range(found: Sequence[Curve]) -> tuple[float, float] | None:
    """The log L0 that all frontiers cover."""
    if not found or not all(len(x) for x, _ in found):
        return None
    low, high = max(float(x[0]) for x, _ in found), min(float(x[-1]) for x, _ in found)
    if 0 < low - high <= SAME_L0:
        low = high = (low + high) / 2
    return (low, high) if low <= high else None


def _has_chords(curves: Sequence[Curve], low: float, high: float) -> bool:
    """Whether some SAE within a range of log L0 has none of the other arm near."""
    (x, _), (y, _) = curves
    inside = [[v for v in one if low <= v <= high] for one in (x, y)]
    pairs = zip(inside, (y, x), strict=True)
    return any(np.abs(other - v).min() > NEAR_L0 for own, other in pairs for v in own)


def _gap(arm: Curve, reference: Curve, low: float, high: float) -> float:
    """The mean of arm minus reference over a range of log L0."""
    knots = np.union1d(arm[0], reference[0])
    knots = np.array([low, *knots[(knots > low) & (knots < high)], high])
    gap = np.interp(knots, *arm) - np.interp(knots, *reference)
    return float(trapezoid(gap, knots) / (high - low) if high > low else gap[0])


def _l0_range(ranges: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """From the lowest to the highest of ranges of log L0."""
    if not ranges:
        return None
    return (math.exp(min(low for low, _ in ranges)), math.exp(max(high for _, high in ranges)))


def _undefined(seeds: Sequence[int], *arms: Sequence[Point]) -> list[int]:
    """Of these seeds, those in which SAEs of an arm have an L0, and none has a score."""
    bare = [
        {p.seed for p in arm if math.isfinite(p.l0)} - {p.seed for p in arm if p.usable}
        for arm in arms
    ]
    return sorted(set().union(*bare).intersection(seeds))


def _test(question: Question) -> Comparison:
    """The comparison before Holm's correction, which alone makes a verdict of it."""
    arm, reference, _, margin, least, exact = question
    found = differences(arm, reference, exact=exact)
    values = list(found.by_seed.values())
    n = len(values)
    warnings = _warnings(found)
    nothing = Comparison("no verdict", n, l0=found.l0, warnings=warnings, margin=margin)
    if undefined := _undefined(found.apart, arm, reference):
        return replace(nothing, reason=f"it is undefined for the SAEs of {_seeds(undefined)}")
    if found.apart:
        return replace(
            nothing,
            reason=f"no common L0 in {_seeds(found.apart)}: the arm's is {_covered(arm)}, the "
            f"reference's {_covered(reference)}; add sparsities between them",
        )
    if n < least:
        few = f"{n} seed{'s' * (n != 1)} in common: it takes {_NUMBERS[least]} at least"
        return replace(nothing, difference=fmean(values) if values else None, reason=few)
    mean = fmean(values)
    tolerance = ROUNDING * max(abs(p.value) for p in (*arm, *reference) if p.usable)
    if max(values) - min(values) > tolerance:
        return _t_tests(values, replace(nothing, verdict="not distinguishable"))
    if abs(mean) > tolerance:
        reason = f"every seed differs by the same {mean:.4g}: there is no noise to judge it by"
        return replace(nothing, difference=mean, sd=0.0, reason=reason)
    return replace(
        nothing,
        verdict="not distinguishable",
        difference=mean,
        interval=(min(values), max(values)),
        sd=0.0,
        p=1.0,
        p_equivalence=None if margin is None else 0.0,
        warnings=(*warnings, "the scores are equal in every seed"),
    )


def _t_tests(values: Sequence[float], of: Comparison) -> Comparison:
    """What paired t tests say of differences that are not all the same."""
    test = scipy.stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(CONFIDENCE)
    mean, sd = fmean(values), stdev(values)
    if of.margin is not None:
        p = float(DescrStatsW(values).ttost_mean(-of.margin, of.margin)[0])
        of = replace(of, p_equivalence=p)
    return replace(
        of,
        difference=mean,
        interval=(float(interval.low), float(interval.high)),
        sd=sd,
        effect_size=mean / sd,
        p=float(test.pvalue),
    )


def _warnings(found: Differences) -> tuple[str, ...]:
    """What a reader of the comparison should know of its SAEs."""
    warnings = []
    if found.unpaired:
        warnings.append(f"{_seeds(found.unpaired)} left out: SAEs of one of the two arms only")
    if found.unusable:
        warnings.append(f"SAEs left out: {found.unusable}, with an L0 of 0 or no score")
    if found.chords:
        warnings.append(
            f"{_seeds(found.chords)}: the arms have SAEs at different L0, and between them scores "
            "are read off a straight line, which favours an arm where frontiers are curved: the "
            "verdict is fairer with SAEs of both at the same L0s"
        )
    if found.fewer:
        warnings.append(
            f"{_seeds(found.fewer)}: not compared at an L0 of "
            f"{', '.join(f'{l0:.3g}' for l0 in found.lacking)}, where one of the two arms has no "
            "score"
        )
    if found.slivers:
        warnings.append(f"{_seeds(found.slivers)}: compared on less than half of either arm's L0")
    if 1 < len(found.by_seed) < ENOUGH_SEEDS and not found.apart:
        warnings.append(
            f"{len(found.by_seed)} seeds: fewer than {ENOUGH_SEEDS} find large differences only"
        )
    return tuple(warnings)


def _covered(points: Sequence[Point]) -> str:
    """The L0 of an arm's SAEs, in words."""
    l0 = sorted(point.l0 for point in points if point.usable)
    return " to ".join(dict.fromkeys(f"{end:.4g}" for end in (l0[:1] + l0[-1:]))) or "unknown"


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
