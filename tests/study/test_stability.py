"""The stability of features over seeds, and whether its intervals can be believed."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import scipy.stats

from sae_plugins.study import stability
from sae_plugins.study.stability import matched_shares, pseudo_values, stabilities

ROWS = np.eye(4, dtype=np.float32)


def test_a_feature_is_matched_by_a_row_of_nearly_its_direction() -> None:
    """Whatever its norm and its place are; the other direction is another feature."""
    near, far = math.sqrt(0.5), 0.69
    other = np.array(
        [
            [0, 0, 0, 9],  # the fourth
            [near, math.sqrt(1 - near**2), 0, 0],  # the first and the second
            [0, 0, far, -math.sqrt(1 - far**2)],  # the third, not quite
        ],
        dtype=np.float32,
    )
    shares = matched_shares([ROWS, other, -ROWS])
    assert shares[0, 1] == 0.75
    assert shares[1, 0] == pytest.approx(2 / 3), "the third one's sign is wrong"
    assert shares[0, 2] == 0
    assert np.isnan(shares.diagonal()).all(), "with itself, each would match"


def test_rows_of_zeros_match_nothing() -> None:
    dead = ROWS.copy()
    dead[:2] = 0
    assert matched_shares([dead, dead, ROWS]).tolist() == [
        [pytest.approx(math.nan, nan_ok=True), 0.5, 0.5],
        [0.5, pytest.approx(math.nan, nan_ok=True), 0.5],
        [0.5, 0.5, pytest.approx(math.nan, nan_ok=True)],
    ]


def test_features_beyond_the_most_are_represented_by_some_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 8)).astype(np.float32)
    other = np.concatenate([rows[::2], -rows[1::2]])
    whole = matched_shares([rows, other])[0, 1]
    monkeypatch.setattr(stability, "MOST", 300)
    monkeypatch.setattr(stability, "_BLOCK", 7)
    assert matched_shares([rows, other])[0, 1] == pytest.approx(whole, abs=0.05)


def test_each_seed_has_the_mean_over_the_others() -> None:
    shares = np.array([[np.nan, 0.2, 0.4], [0.6, np.nan, 0.8], [0.0, 1.0, np.nan]])
    assert stabilities(shares) == pytest.approx([0.3, 0.7, 0.5])
    # of n times the mean of all pairs, less (n - 1) times that without the seed's own
    without = [np.nanmean([0.8, 1.0]), np.nanmean([0.4, 0.0]), np.nanmean([0.2, 0.6])]
    assert pseudo_values(shares) == pytest.approx([3 * 0.5 - 2 * each for each in without])
    assert np.mean(pseudo_values(shares)) == pytest.approx(np.nanmean(shares))


def test_two_seeds_have_no_pseudo_values() -> None:
    shares = np.array([[np.nan, 0.2], [0.4, np.nan]])
    assert pseudo_values(shares) == stabilities(shares) == [0.2, 0.4]


@pytest.mark.parametrize(
    ("of", "least", "most"), [(pseudo_values, 0.9, 0.99), (stabilities, 0.5, 0.8)]
)
def test_jackknife_intervals_cover_the_truth_and_those_of_the_values_do_not(
    of: object, least: float, most: float
) -> None:
    """Each seed has its own quality, and a pair matches as far as both are good."""
    rng, n, covered = np.random.default_rng(0), 6, []
    for _ in range(400):
        quality = rng.normal(0, 0.1, n)
        shares = np.full((n, n), np.nan)
        for i, j in permutations(range(n), 2):
            shares[i, j] = 0.5 + quality[i] / 2 + quality[j] / 2
        values = of(shares)  # type: ignore[operator]
        low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        covered.append(low <= 0.5 <= high)
    assert least < np.mean(covered) < most
