"""Power that is stated is power that simulations have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.weightstats import DescrStatsW

from sae_plugins.study.power import detectable_effect, equivalence_power, seeds_needed

few = settings(max_examples=40, deadline=None)
STUDIES = 20_000


def paired(n: int, effect: float = 0.0) -> DescrStatsW:
    """The differences of many studies of n seeds, a study a column."""
    return DescrStatsW(np.random.default_rng(n).normal(effect, 1, (n, STUDIES)))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("family", [1, 3, 60])
def test_the_smallest_detectable_effect_has_the_power_it_states(n: int, family: int) -> None:
    """The power of a t test, for each standard deviation that n seeds may come to have."""
    critical = scipy.stats.t.isf(0.05 / family / 2, n - 1)
    mean = detectable_effect(n, 0.05 / family) * math.sqrt(n)
    sd = np.sqrt(scipy.stats.chi2.ppf((np.arange(10_000) + 0.5) / 10_000, n - 1) / (n - 1))
    found = scipy.stats.norm.sf(critical * sd - mean) + scipy.stats.norm.cdf(-critical * sd - mean)
    assert found.mean() == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(("n", "family"), [(3, 3), (5, 1), (5, 63), (10, 10)])
def test_the_smallest_detectable_effect_is_found_in_80_percent_of_simulated_studies(
    n: int, family: int
) -> None:
    effect = detectable_effect(n, 0.05 / family)
    p = paired(n, effect).ttest_mean(0)[1]
    assert (p < 0.05 / family).mean() == pytest.approx(0.8, abs=0.012)  # four standard errors


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_p_values_are_uniform_where_there_is_no_difference(n: int) -> None:
    p = paired(n).ttest_mean(0)[1]
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("true", [0.0, 0.7])
@pytest.mark.parametrize(
    ("n", "margin", "alpha"), [(3, 4, 0.05), (5, 2.5, 0.05 / 3), (10, 1, 0.05)]
)
def test_equivalence_is_shown_as_often_as_stated(
    n: int, margin: float, alpha: float, true: float
) -> None:
    p = paired(n, true).ttost_mean(-margin, margin)[0]
    stated = equivalence_power(margin, n, alpha, true)
    assert (p <= alpha).mean() == pytest.approx(stated, abs=0.015)


@few
@given(st.integers(2, 30), st.floats(0.1, 20), st.sampled_from([0.05, 0.01, 0.001]))
def test_a_difference_as_large_as_the_margin_is_hardly_ever_called_equivalent(
    n: int, margin: float, alpha: float
) -> None:
    assert equivalence_power(margin, n, alpha, true=margin) <= alpha + 1e-6
    assert equivalence_power(margin, n, alpha) >= equivalence_power(margin, n, alpha, margin) - 1e-6


@few
@given(st.floats(0.3, 40), st.integers(1, 100))
def test_so_many_seeds_find_it_and_one_fewer_does_not(margin: float, comparisons: int) -> None:
    n = seeds_needed(margin, comparisons)
    if n is None:
        assert detectable_effect(100, 0.05 / comparisons) > margin
    else:
        assert detectable_effect(n, 0.05 / comparisons) <= margin
        assert detectable_effect(n - 1, 0.05 / comparisons) > margin


def test_one_seed_finds_nothing() -> None:
    assert detectable_effect(1, 0.05) == math.inf
