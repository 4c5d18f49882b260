"""From the L0s that pilots have reached to the values that give the wanted L0s; pure numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DIGITS = 3


def interpolated(
    values: Sequence[float],
    reached: Sequence[float],
    targets: Sequence[float],
    *,
    proportional: bool = False,
) -> tuple[list[float | None], str | None]:
    """The values that give the targets, between those that were tried, on log axes.

    Args:
        values: that were tried.
        reached: the L0 that each gave; 0 for a pilot that failed, or has no active feature.
        targets: wanted L0s.
        proportional: the L0 goes about with the value, as with k, so that beyond the pilots it is
            as many times the nearest one's as the value.

    Returns:
        A value for each target, None where it is out of reach; and a sentence about these.
    """
    points = sorted((l0, value) for l0, value in zip(reached, values, strict=True) if l0)
    nothing: list[float | None] = [None] * len(targets)
    if not points:
        return nothing, "none of the values under sparsity gives an SAE with active features"
    logs = np.log(points)
    wanted = np.log(targets)
    low, high = logs[0, 0], logs[-1, 0]
    found = np.interp(wanted, logs[:, 0], logs[:, 1])
    if proportional:
        found = found + wanted - wanted.clip(low, high)
    is_within = (low <= wanted) & (wanted <= high) | proportional
    rounded = [
        float(f"{np.exp(value):.{_DIGITS}g}") if within else None
        for value, within in zip(found, is_within, strict=True)
    ]
    missed = [target for target, value in zip(targets, rounded, strict=True) if value is None]
    if not missed:
        return rounded, None
    ways = {"larger": np.log(missed).min() < low, "smaller": np.log(missed).max() > high}
    return rounded, (
        f"an L0 of {' or '.join(f'{target:g}' for target in missed)} is not between the "
        f"{np.exp(low):.3g} and {np.exp(high):.3g} that its values under sparsity give; add "
        f"{' and '.join(way for way, needed in ways.items() if needed)} ones"
    )
