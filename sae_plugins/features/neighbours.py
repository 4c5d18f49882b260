"""Which decoder rows are near each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 1 << 22
"""Cosines that are computed at once."""


def directions(W_dec: Tensor) -> Tensor:
    """Decoder rows of length 1, in float32."""
    return torch.nn.functional.normalize(W_dec.detach().float(), dim=1)


def _cosines(left: Tensor, right: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of left @ right.T, some at a time, and the number of the first."""
    step = max(1, _BLOCK // len(right))
    for first in range(0, len(left), step):
        yield first, left[first : first + step] @ right.T


@torch.no_grad()
def nearest(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The other features whose decoder rows have the largest cosines with each feature's.

    Args:
        rows: `directions` [d_sae, d_in].
        most: how many of them.

    Returns:
        Their indices and cosines [d_sae, most], the largest ones first.
    """
    most = min(most, len(rows) - 1)
    index = torch.empty((len(rows), most), dtype=torch.long, device=rows.device)
    values = torch.empty((len(rows), most), device=rows.device)
    for first, cosines in _cosines(rows, rows):
        own = torch.arange(len(cosines), device=rows.device)
        cosines[own, first + own] = -2
        found = cosines.topk(most, dim=1)
        index[first : first + len(own)] = found.indices
        values[first : first + len(own)] = found.values
    return index, values


@torch.no_grad()
def decoder_twins(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """For each feature, the one of another SAE whose decoder row has the largest cosine with its.

    Args:
        own: `directions` [d_sae, d_in].
        other: those of the other SAE.
    """
    index = torch.empty(len(own), dtype=torch.long, device=own.device)
    values = torch.empty(len(own), device=own.device)
    for first, cosines in _cosines(own, other):
        best = cosines.max(dim=1)
        index[first : first + len(cosines)] = best.indices
        values[first : first + len(cosines)] = best.values
    return index, values
