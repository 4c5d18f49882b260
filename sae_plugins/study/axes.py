"""Where the axis of a figure ends, if an arm is so far off that the others could not be told apart.

Such an arm is named at the end of the axis instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

_FAR, _APART = 5.0, 2.0
"""An arm that reaches so many times as far as the median one, and so many times as far as the
next one, is off the axis."""
_PAD = 0.08
"""Of the axis, at both ends."""


@dataclass(frozen=True)
class Cut:
    """An axis from `low` to `high`, and the arms that are `off` it, with where they are."""

    low: float
    high: float
    off: Mapping[str, tuple[float, float]]


def farthest_near(reaches: Sequence[float]) -> float | None:
    """The farthest reach that an axis shows, if it does not show all."""
    ordered = sorted(reaches)
    return next(
        (
            nearer
            for nearer, reach in itertools.pairwise(ordered)
            if reach > _FAR * median(ordered) and reach > _APART * nearer
        ),
        None,
    )


def padded(ends: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest of these, and a little further."""
    low, high = min(ends), max(ends)
    pad = _PAD * (high - low) or _PAD * abs(high) or _PAD  # of a single value
    return low - pad, high + pad


def cut(values: Mapping[str, Sequence[float]], reference: str) -> Cut | None:
    """An axis without the arms that are far from the reference; None if it shows all.

    Args:
        values: by arm, what is drawn of it.
        reference: the arm from whose middle the others' reach counts.
    """
    if reference not in values:
        return None
    middle = median(values[reference])
    reaches = {arm: max(abs(y - middle) for y in found) for arm, found in values.items()}
    most = farthest_near([*reaches.values()])
    if most is None:
        return None
    off = {arm: (min(found), max(found)) for arm, found in values.items() if reaches[arm] > most}
    return Cut(*padded([y for arm in values if arm not in off for y in values[arm]]), off)
