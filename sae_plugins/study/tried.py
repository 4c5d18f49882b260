"""Flags that an arm tries several values of, by a grid or a search: what cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def problems(
    place: str, arm: Any, own: Mapping[str, Any], models: Mapping[str, Any]
) -> Iterator[str]:
    """What of a grid or a search would do nothing, or be undone, a sentence each.

    Args:
        place: of the arm in the study.
        arm: an `Arm`.
        own: the flags under its `train` without those of a paper's row.
        models: the study's, a `Model` each.
    """
    swept = {flag for has in (arm, *arm.models.values(), *models.values()) for flag in has.sparsity}
    tuned = any(has.tune for has in (arm, *arm.models.values()))
    grid, over = arm.grid, arm.search.over if arm.search else {}
    if over and arm.untrained:
        yield f"{place}.search would do nothing to SAEs that are not trained; leave it out"
    for flag in grid.keys() & over.keys():
        yield f"{place}.grid and {place}.search both try {flag}; leave one of the two out"
    for where, flag in [
        *((f"{place}.grid.{flag}", flag) for flag in grid),
        *((f"{place}.search.over.{flag}", flag) for flag in over),
    ]:
        if flag == "plugin":
            yield f"{where}: name plugins in arms of their own"
        elif arm.exists:
            yield f"{where} would do nothing to SAEs that exist already; leave it out"
        elif flag in swept:
            yield f"{where}: the study has this flag under sparsity; give the values there"
        elif flag == "lr" and tuned:
            yield f"{where} and {place}.tune both try learning rates; leave one of the two out"
        for name in (n for n, there in arm.models.items() if flag in there.train):
            yield f"{where} would do nothing on {name}, where models.{name}.train has this flag"
        if flag in own:
            yield f"{place}.train.{flag} would do nothing beside {where}; leave one of the two out"
