"""Does another seed find the same features? Pure functions on the decoder rows of an arm's SAEs.

An SAE is as stable as the share of its features that have a match in another seed's SAE, mean over
the other seeds. Each pair of seeds is in two of these numbers, so these are no independent samples,
and a t test on them would be too sure. The jackknife leaves out one seed at a time: its
pseudo-values have the same mean, and a spread that a t test can use as that of independent samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MATCH = 0.7
"""Cosine of two decoder rows above which they are the same feature."""
LEAST_SEEDS = 3
"""Two seeds are one pair, which says nothing of how pairs differ."""
MOST = 4096
"""Features of an SAE, evenly spread over the positions, that stand for all where it has more."""
_BLOCK = 1024

Rows = NDArray[np.float32]


def matched_shares(decoders: Sequence[Rows]) -> NDArray[Any]:
    """[n, n], the share of each SAE's features that have a match in each other SAE.

    Args:
        decoders: of n seeds, each [d_sae, d_in]; a row of zeros matches nothing.
    """
    units = [_unit(rows) for rows in decoders]
    shares = np.full((len(units), len(units)), np.nan)
    for i, j in np.ndindex(shares.shape):
        if i != j:
            shares[i, j] = _share(units[i], units[j])
    return shares


def stabilities(shares: NDArray[Any]) -> list[float]:
    """Of each seed: the mean over the others of `matched_shares`."""
    return [float(mean) for mean in np.nanmean(shares, axis=1)]


def pseudo_values(shares: NDArray[Any]) -> list[float]:
    """Of each seed: the jackknife's pseudo-value of the mean stability, by `matched_shares`.

    With fewer than `LEAST_SEEDS` seeds there are none, and these are the stabilities themselves.
    """
    n = len(shares)
    if n < LEAST_SEEDS:
        return stabilities(shares)
    kept = [np.delete(np.delete(shares, seed, 0), seed, 1) for seed in range(n)]
    return [float(n * np.nanmean(shares) - (n - 1) * np.nanmean(others)) for others in kept]


def _unit(rows: Rows) -> Rows:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Rows = rows / np.where(norms > 0, norms, 1)
    return units


def _share(rows: Rows, others: Rows) -> float:
    """The share of unit rows that have one of the others as a match."""
    chosen = rows[:: math.ceil(len(rows) / MOST)]
    blocks = np.array_split(chosen, math.ceil(len(chosen) / _BLOCK))
    matched = [(block @ others.T).max(axis=1) > MATCH for block in blocks]
    return float(np.concatenate(matched).mean())
