"""The largest of a row, and of a whole batch: exactly, but without looking at all of them twice."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_plugins.framework.fast.pairs import above

_SAMPLE = 2**17
"""Entries from which the cut of a batch is guessed."""


def top_k(x: Tensor, k: int) -> Tensor:
    """Positions [B, k] of the k largest entries of each row [B, n], in any order.

    They are in the k groups of a row with the largest maxima, so that only these are searched.
    """
    rows, n = x.shape
    group = 1
    while n % (2 * group) == 0 and 4 * group * group * k <= 2 * n:
        group *= 2
    if group < 4:
        return x.topk(k, sorted=False).indices
    grouped = x.view(rows, group, n // group)
    best = grouped.amax(1).topk(k, sorted=False).indices
    candidates = grouped.gather(2, best[:, None, :].expand(-1, group, -1)).view(rows, group * k)
    inner = candidates.topk(k, sorted=False).indices
    place = torch.div(inner, k, rounding_mode="floor")
    return best.gather(1, inner % k) + place * (n // group)


def batch_top_k(x: Tensor, count: int) -> Tensor:
    """Sorted positions in flattened x [B, n] of its `count` largest entries that are above 0.

    Among equal ones at the cut the choice is SAELens'. A sample of the entries says which need not
    be looked at.
    """
    flat = x.flatten()
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    sample = flat[:: max(1, flat.numel() // _SAMPLE) | 1]  # odd, so that it meets all features
    rank = min(len(sample), int(1.15 * count / flat.numel() * len(sample)) + 32)
    guess = sample.topk(rank, sorted=False).values.min().clamp_min(0)
    found = above(flat, guess).nonzero().squeeze(1)
    if len(found) < count and guess > 0:
        found = above(flat, 0).nonzero().squeeze(1)
    if len(found) <= count <= flat.numel():  # more than all is an error, as in SAELens
        return found
    values = flat[found]
    chosen = found[values >= values.kthvalue(len(values) - count + 1).values]
    if len(chosen) == count:
        return chosen
    return flat.relu().topk(count).indices.sort().values
