"""What an earlier call of the same command has left in a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from sae_plugins.runs import journal
from sae_plugins.runs.folder import CONFIG, RECIPE, SUMMARY, WEIGHTS
from sae_plugins.runs.run_folder import RunFolder


class Earlier(NamedTuple):
    """A run that is in a folder."""

    recipe: Path
    """Its `run.yaml`."""
    state: Literal["unfinished", "ended"]
    """Whether there is something to go on with."""


def earlier_run(path: Path) -> Earlier | None:
    """The run in a folder that can go on, or has ended; None if there is neither."""
    folder = RunFolder(path)
    begun = folder.unfinished / RECIPE
    recipe = begun if begun.is_file() else path / RECIPE
    if folder.can_go_on() or journal.pending(path) is not None:
        return Earlier(recipe, "unfinished")
    whole = all((path / name).is_file() for name in (CONFIG, WEIGHTS, RECIPE, SUMMARY))
    return Earlier(recipe, "ended") if whole and recipe != begun else None
