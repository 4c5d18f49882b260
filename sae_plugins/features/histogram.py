"""How strong the firings of each feature are, counted in one pass without knowing the strongest."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 64
_SMALLEST = -100
"""The exponent of the narrowest range."""


class Histogram:
    """Counts activations in `BINS` equal bins from 0 to the next power of two.

    When a stronger one comes, the range doubles and each two bins become one, which is exact.

    Attributes:
        largest: [d_sae], the strongest activation of each feature.
        counts: [d_sae, BINS].
        exponent: [d_sae]; the range ends at 2 to the power of it.
    """

    def __init__(self, d_sae: int, device: torch.device) -> None:
        """Count nothing yet."""
        self.largest = torch.zeros(d_sae, device=device)
        self.counts = torch.zeros((d_sae, BINS), dtype=torch.int32, device=device)
        self.exponent = torch.full((d_sae,), _SMALLEST, dtype=torch.int32, device=device)

    def add(self, feature: Tensor, value: Tensor) -> None:
        """Count activations [n], all above 0, of features [n]."""
        self.largest.scatter_reduce_(0, feature, value, "amax")
        self._widen(torch.frexp(self.largest).exponent.where(self.largest > 0, self.exponent))
        at = bins(value, self.exponent[feature])
        ones = torch.ones_like(at, dtype=torch.int32)
        self.counts.view(-1).index_add_(0, feature * BINS + at, ones)

    def _widen(self, exponent: Tensor) -> None:
        rows = (exponent > self.exponent).nonzero().squeeze(1)
        if not len(rows):
            return
        by = (exponent - self.exponent)[rows].clamp(max=BINS).unsqueeze(1)
        target = torch.arange(BINS, device=rows.device) >> by.clamp(max=31)
        counts = torch.zeros_like(self.counts[rows])
        self.counts[rows] = counts.scatter_add_(1, target, self.counts[rows])
        self.exponent[rows] = exponent[rows]

    def quantile(self, feature: Tensor, value: Tensor) -> Tensor:
        """The share of a feature's firings that is weaker, half of those in the same bin included.

        Args:
            feature: [n].
            value: [n], each counted before.
        """
        counts = self.counts.double()
        at = bins(value, self.exponent[feature])
        own, total = counts[feature, at], counts.sum(dim=1)
        below = counts.cumsum(dim=1)[feature, at] - own
        return (below + own / 2) / total[feature]


def bins(value: Tensor, exponent: Tensor) -> Tensor:
    """The bin of each activation in a range of such an exponent."""
    scale = torch.exp2((BINS.bit_length() - 1 - exponent).double())
    return (value.double() * scale).long().clamp(max=BINS - 1)
