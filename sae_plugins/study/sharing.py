"""What several ranks, or processes with a GPU each, must have alike to share a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.base.gpus import visible
from sae_plugins.base.ranks import ranks
from sae_plugins.base.secrets import reason_of
from sae_plugins.resume.division import check_shards
from sae_plugins.settings.checks import check_gpus
from sae_plugins.study.cells import Cell


def check_division(cells: Sequence[Cell]) -> None:
    """Refuse SAEs whose text several ranks cannot share."""
    problems = Problems()
    for cell in cells if ranks().size > 1 else ():
        batch = int(cell.settings.get("train_batch_size_tokens"))
        with problems, prefixed(f"models.{cell.model}.train.data_shards"):
            check_shards(cell.settings.data_shards, batch, ranks().size)
    problems.stop()


def check_devices(cells: Sequence[Cell], jobs: int) -> None:
    """Refuse SAEs on a GPU by its number, where each rank or process gets one of its own."""
    problems, processes = Problems(), jobs if visible() else 1
    for cell in cells:
        with problems, prefixed(f"models.{cell.model}.train"):
            check_gpus(cell.settings, ranks=ranks().size, processes=processes)
    problems.stop()


def agree(arms: dict[Cell, Any], failures: dict[Cell, Exception]) -> None:
    """Have all ranks train the same arms, on machines alike: one that fails on one fails on all.

    Raises:
        RankError: the machines differ.
    """
    from sae_plugins.runs.machine import machine

    if ranks().size == 1:
        return
    reasons = {cell.folder.name: reason_of(error) for cell, error in failures.items()}
    for told in ranks().all(reasons, patiently=True):
        for cell in [cell for cell in arms if cell.folder.name in told]:
            failures[cell] = SaePluginsError(told[cell.folder.name])
            del arms[cell]
    # an arm's name stands for all that its SAE depends on
    facts: dict[str, Any] = {"their names": [arm.name for arm in arms.values()]}
    for arm in [*arms.values()][:1]:
        facts |= {f"the machine's {n}": v for n, v in machine(arm.setup.settings).items()}
    ranks().same("a study's arms and machines", facts)
