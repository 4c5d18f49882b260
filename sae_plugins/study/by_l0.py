"""Where an arm is ahead, and where it is behind: its differences from the reference, L0 by L0.

A verdict is of a mean over L0s, and an arm may be better on average and worse at one of them.
Intervals here are of one L0 each, without a correction: they say where to look, and decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import scipy.stats

from sae_plugins.base.text import in_words
from sae_plugins.study.statistics import (
    CONFIDENCE,
    SAME_L0,
    Better,
    Comparison,
    Question,
    at_shared_l0s,
    common_range,
    curves,
)


@dataclass(frozen=True)
class AtL0:
    """What two arms differ by at one L0."""

    l0: float
    n: int
    """Seeds."""
    difference: float
    """Arm minus reference, mean over seeds."""
    interval: tuple[float, float] | None
    """95% t interval; None if there is one seed."""

    @property
    def is_beyond_zero(self) -> bool:
        """Whether the interval is."""
        return self.interval is not None and self.interval[0] * self.interval[1] > 0


def by_l0(question: Question) -> list[AtL0]:
    """Differences at each exact L0 that a seed's SAEs of both arms have, in ascending order.

    Where L0s are not exact, at the ends and in the middle of what all seeds cover.
    """
    arms, references = curves(question.arm), curves(question.reference)
    pairs = [
        [arms[seed], references[seed]]
        for seed in sorted(arms.keys() & references.keys())
        if len(arms[seed][0]) and len(references[seed][0])
    ]
    gaps: dict[float, list[float]] = {}
    if question.exact:
        for pair in pairs:
            (shared, own), (_, other) = at_shared_l0s(pair)
            for x, gap in zip(shared, own - other, strict=True):
                gaps.setdefault(float(x), []).append(float(gap))
    elif common := common_range([one for pair in pairs for one in pair]):
        low, high = common
        places = [low, (low + high) / 2, high] if high - low > SAME_L0 else [(low + high) / 2]
        for x in places:
            gaps[x] = [float(np.interp(x, *own) - np.interp(x, *other)) for own, other in pairs]
    return [_at(math.exp(x), gaps[x]) for x in sorted(gaps)]


def _at(l0: float, values: Sequence[float]) -> AtL0:
    mean, n = fmean(values), len(values)
    if n < 2:
        return AtL0(l0, n, mean, None)
    half = float(scipy.stats.t.isf((1 - CONFIDENCE) / 2, n - 1) * scipy.stats.sem(values))
    return AtL0(l0, n, mean, (mean - half, mean + half))


def exception(mean: Comparison, better: Better, found: Sequence[AtL0]) -> str:
    """At which L0s the difference is the other way round than on average; empty if at none."""
    if not mean.difference or mean.verdict == "no verdict":
        return ""
    l0s = [at.l0 for at in found if at.is_beyond_zero and at.difference * mean.difference < 0]
    if not l0s:
        return ""
    word = "worse" if (mean.difference > 0) == (better == "higher") else "better"
    return f"but {word} at an L0 of {listed(l0s)}"


def listed(l0s: Sequence[float]) -> str:
    """L0s in words."""
    return in_words([f"{l0:.3g}" for l0 in l0s])
