"""The order of an SAE's features, as a picture: what it sorts, and whether neighbours are alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WINDOWS = 48
"""Bands into which the positions are divided."""
_QUANTILES = (0.16, 0.5, 0.84)


@dataclass(frozen=True)
class Order:
    """What is drawn.

    Attributes:
        correlation: of rank, between position and density; None where all densities are equal.
        edges: where bands of positions begin, and the end of the last.
        density: of each band, the 16%, 50% and 84% quantiles of density.
        related: of each band, the mean cosine of its features' decoder rows with the next row.
        by_chance: that mean for random pairs of all features.
    """

    correlation: float | None
    edges: list[int]
    density: list[list[float]]
    related: list[float]
    by_chance: float


def order_of(density: NDArray[np.float64], directions: Tensor) -> Order:
    """What the order of features says.

    Args:
        density: [d_sae], the share of tokens at which each feature fires.
        directions: decoder rows of length 1 [d_sae, d_in].
    """
    d_sae = len(density)
    edges = np.unique(np.linspace(0, d_sae, min(WINDOWS, d_sae) + 1).round().astype(int))
    parts = [slice(first, last) for first, last in pairwise(edges)]
    cosines = (directions * directions.roll(-1, 0)).sum(dim=1)
    cosines[-1] = cosines[max(0, d_sae - 2)]  # the last one has no next
    generator = torch.Generator().manual_seed(0)
    shuffled = directions[torch.randperm(d_sae, generator=generator).to(directions.device)]
    chance = (shuffled * shuffled.roll(-1, 0)).sum(dim=1).mean()
    return Order(
        correlation=_rank_correlation(density),
        edges=edges.tolist(),
        density=[np.quantile(density[part], _QUANTILES).tolist() for part in parts],
        related=[float(cosines[part].mean()) for part in parts],
        by_chance=float(chance),
    )


def _rank_correlation(density: NDArray[np.float64]) -> float | None:
    """Spearman's, between position and density."""
    from scipy.stats import spearmanr

    if len({*density.tolist()}) < 2:
        return None
    return float(spearmanr(np.arange(len(density)), density).statistic)
