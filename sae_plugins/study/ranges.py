"""Over which L0s the comparisons of a model are, and which of them are over others than most."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import median, mode
from typing import Generic, TypeVar

from sae_plugins.study.by_l0 import listed
from sae_plugins.study.statistics import NEAR_L0
from sae_plugins.study.words import span

K = TypeVar("K", bound=Hashable)
Exact = tuple[float, ...]
"""L0s that SAEs of both arms have exactly, in ascending order."""
Range = tuple[float, float]
"""Between L0s that were measured."""


@dataclass(frozen=True)
class Ranges(Generic[K]):
    """L0s in words."""

    usual: str
    """Those of most comparisons; empty where there is none."""
    others: dict[K, str]
    """Those of the rest."""


def ranges(exact: Mapping[K, Exact], measured: Mapping[K, Range]) -> Ranges[K]:
    """What most comparisons are over, and what the rest is.

    The ends of measured L0s differ a little from arm to arm; another range than those of most has
    an end that is not near the median one.
    """
    words = {key: _said(listed(l0s)) for key, l0s in exact.items()}
    usual = mode(words.values()) if words else ""
    others = {key: text for key, text in words.items() if text != usual}
    if measured:
        lows, highs = zip(*measured.values(), strict=True)
        ends = (median(lows), median(highs))
        usual = usual or _said(span(ends))
        others |= {
            key: _said(span(one))
            for key, one in measured.items()
            if any(abs(math.log(x / y)) > NEAR_L0 for x, y in zip(one, ends, strict=True))
        }
    return Ranges(usual, others)


def _said(l0s: str) -> str:
    return f"L0s of {l0s}" if " " in l0s else f"an L0 of {l0s}"
