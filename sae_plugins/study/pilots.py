"""From the L0s that pilots have reached to the values that give the wanted L0s; pure numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_DIGITS = 3


def interpolated(
    values: Sequence[float],
    reached: Sequence[float],
    targets: Sequence[float],
    *,
    denser: float = 1.0,
    proportional: bool = False,
) -> tuple[list[float | None], list[str]]:
    """The values that give the targets, between those that were tried, on log axes.

    Args:
        values: that were tried.
        reached: the L0 that each gave; 0 for a pilot that failed, or has no active feature.
        targets: wanted L0s.
        denser: so many times a target is aimed at, or as near to that as the pilots come.
        proportional: the L0 goes about with the value, as with k, so that beyond the pilots it is
            as many times the nearest one's as the value.

    Returns:
        A value for each target, None where it is out of reach; and sentences about targets and aims
        that are.
    """
    points = sorted((l0, value) for l0, value in zip(reached, values, strict=True) if l0)
    if not points:
        return [None for _ in targets], [
            "none of the values under sparsity gives an SAE with active features"
        ]
    logs = np.log(points)
    least, most = points[0][0], points[-1][0]
    # the target itself counts: an aim that is out of reach is no reason to do without it
    aims = [min(denser * target, max(target, most)) for target in targets]
    wanted = np.log(aims)
    found = np.interp(wanted, logs[:, 0], logs[:, 1])
    if proportional:
        found = found + wanted - wanted.clip(logs[0, 0], logs[-1, 0])
    rounded = [
        float(f"{np.exp(value):.{_DIGITS}g}") if proportional or least <= aim <= most else None
        for value, aim in zip(found, aims, strict=True)
    ]
    return rounded, [] if proportional else [*_doubts(targets, denser, least, most)]


def _doubts(targets: Sequence[float], denser: float, least: float, most: float) -> Iterator[str]:
    """What is said of targets and aims that are not between the L0s of the pilots."""
    given = "its values under sparsity give"
    why = "aimed at, since thresholds take activations away" if denser > 1 else ""
    missed = [target for target in targets if denser * target < least or target > most]
    if missed:
        aimed = f" ({_either(denser * x for x in missed)} is {why})" if why else ""
        ways = {"larger": denser * min(missed) < least, "smaller": max(missed) > most}
        yield (
            f"an L0 of {_either(missed)} is not between the {least:.3g} and {most:.3g} that "
            f"{given}{aimed}; add {' and '.join(way for way, is_one in ways.items() if is_one)} "
            "ones"
        )
    if near := [target for target in targets if target <= most < denser * target]:
        yield (
            f"for an L0 of {_either(near)}, {given} {most:.3g} at most, which is less than the "
            f"{_either(denser * x for x in near)} that is aimed at, so that SAEs may turn out too "
            "sparse; add smaller ones"
        )


def _either(l0s: Iterable[float]) -> str:
    return " or ".join(f"{l0:g}" for l0 in l0s)
