"""For each feature, a few of its firings, chosen while all of them stream past."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

NEVER = 2**31 - 1
"""The worst rank: of a feature that has room, any other is better."""
_PRIME = 0x5851F42D4C957F2D
"""Tells features apart in a hash of windows."""
_LEAST_WAITING = 1 << 14


@dataclass(frozen=True)
class Entries:
    """Firings that may be shown, with what is around them.

    Attributes:
        feature: which feature fired.
        rank: of two firings of a feature, the one of the lower rank is kept.
        key: equal for equal windows of tokens, of which one is kept.
        position: of the token, among all tokens that were read.
        value: the activation.
        window: activations [n, width] around the token, as multiples of `value`.
    """

    feature: Tensor
    rank: Tensor
    key: Tensor
    position: Tensor
    value: Tensor
    window: Tensor

    def __len__(self) -> int:
        return len(self.feature)

    def __getitem__(self, index: Tensor) -> Entries:
        return Entries(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def joined(parts: list[Entries]) -> Entries:
        """All entries, in their order."""
        return Entries(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Entries))
        )


class Best:
    """Keeps the entries of the lowest rank of each feature, of different windows each.

    That is exact, however the entries come in batches: of equal windows the best one stays, and
    what is worse than `size` different windows can never come back. Of equal ranks, the earlier
    one stays.
    """

    def __init__(self, d_sae: int, size: int, device: torch.device) -> None:
        """Keep up to `size` entries of each feature."""
        self.size = size
        self.worst = torch.full((d_sae,), NEVER, dtype=torch.int32, device=device)
        self._limit = max(_LEAST_WAITING, d_sae * size // 4)
        self._parts: list[Entries] = []
        self._waiting = 0

    def wants(self, feature: Tensor, rank: Tensor) -> Tensor:
        """Which entries may be kept."""
        return rank < self.worst[feature]

    def add(self, entries: Entries) -> None:
        """Look at entries that come after all others in the text."""
        self._parts.append(entries)
        self._waiting += len(entries)
        if self._waiting > self._limit:
            self._settle()

    def kept(self) -> Entries:
        """The entries, by feature, the best ones first."""
        self._settle()
        return self._parts[0]

    def _settle(self) -> None:
        entries = Entries.joined(self._parts)
        self._parts, self._waiting = [], 0
        order = torch.argsort((entries.feature.long() << 32) | entries.rank.long(), stable=True)
        feature = entries.feature[order].long()
        is_new = ~_repeated(entries.key[order] ^ (feature * _PRIME))
        order, feature = order[is_new], feature[is_new]
        place = torch.arange(len(order), device=order.device) - torch.searchsorted(feature, feature)
        kept = entries[order[place < self.size]]
        self._parts.append(kept)
        is_last = place == self.size - 1
        self.worst.fill_(NEVER)
        self.worst[feature[is_last]] = entries.rank[order[is_last]]


def _repeated(values: Tensor) -> Tensor:
    """Where a value stands that has been there before."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    found = torch.zeros_like(values, dtype=torch.bool)
    found[order[1:]] = ordered[1:] == ordered[:-1]
    return found


def rank_of_value(value: Tensor) -> Tensor:
    """Ranks with which large positive values are kept."""
    return NEVER - value.float().view(torch.int32)


def rank_at_random(feature: Tensor, position: Tensor) -> Tensor:
    """Ranks that pick a random sample, which is the same however the text comes in batches."""
    mixed = (position + 1) * 0x2545F4914F6CDD1D + (feature.long() + 1) * _PRIME
    for shift in (31, 29):  # in the ways of splitmix64; shifts keep the sign
        mixed = (mixed ^ (mixed >> shift)) * 0x3F58476D1CE4E5B9
    return ((mixed >> 33) & (NEVER - 1)).to(torch.int32)
