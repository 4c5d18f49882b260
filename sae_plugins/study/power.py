"""What so many seeds can find: the power of the paired t tests that give verdicts.

All differences and margins here are in standard deviations of the seeds' paired differences, so
that they are known before anything is trained. Multiplied by the noise of a metric, they are in its
own unit.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special
import scipy.stats

POWER = 0.8
"""Of the smallest detectable difference."""
ALPHA = 0.05
"""The chance of any wrong claim in a family of tests."""
HOPELESS = 30.0
"""Standard deviations of noise: nobody plans for a difference as large as that."""
_QUANTILES = 4000


def detectable_effect(n: int, alpha: float) -> float:
    """The d_z that a two-sided paired t test of n seeds at level alpha finds with 80% power.

    It inverts the noncentral t distribution; the tail on the other side has a chance below 1e-4.
    (statsmodels' `TTestPower.solve_power` is not used: for few seeds and small levels it returns
    effects of a quite different power, without an error.) One seed finds nothing: infinity.
    """
    if n < 2:
        return math.inf
    critical = scipy.stats.t.isf(alpha / 2, n - 1)
    return float(scipy.special.nctdtrinc(n - 1, 1 - POWER, critical)) / math.sqrt(n)


def equivalence_power(margin: float, n: int, alpha: float, true: float = 0.0) -> float:
    """The chance that two one-sided paired t tests show a difference to lie within a margin.

    Given the standard deviation that the seeds happen to have, the chance is that of a normal
    variable between two limits; the mean is over how that standard deviation is distributed.

    Args:
        margin: the largest difference that does not matter, in standard deviations.
        n: seeds, at least two.
        alpha: the level of each of the two tests.
        true: the true difference, in standard deviations.
    """
    quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    sd = np.sqrt(scipy.stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    reach, root = scipy.stats.t.isf(alpha, n - 1) * sd, math.sqrt(n)
    low, high = reach - root * (margin + true), root * (margin - true) - reach
    return float(np.maximum(0, scipy.special.ndtr(high) - scipy.special.ndtr(low)).mean())


def seeds_needed(margin: float, comparisons: int, most: int = 100) -> int | None:
    """The fewest seeds that find a difference of `margin` standard deviations among so many tests.

    None if more than `most` are needed.
    """
    level = ALPHA / comparisons
    return next((n for n in range(2, most + 1) if detectable_effect(n, level) <= margin), None)
