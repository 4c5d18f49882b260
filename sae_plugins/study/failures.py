"""Why an SAE of a study is not there: a file beside the place where its folder would be."""

from __future__ import annotations

from pathlib import Path

from sae_plugins.base.files import write
from sae_plugins.base.secrets import reason_of
from sae_plugins.base.shown_paths import without_places
from sae_plugins.study.cells import Cell

FAILED = ".failed"
"""Ending of the file, beside a run's folder that is not there, that says why."""


def failed_file(cell: Cell, folder: Path) -> Path:
    """Where it says why."""
    path = folder / cell.folder
    return path.with_name(path.name + FAILED)


def note(cell: Cell, folder: Path, error: Exception | None) -> None:
    """Write why a cell has failed beside its folder; nothing is left there if it has not."""
    if error is None:
        failed_file(cell, folder).unlink(missing_ok=True)
    else:
        failed_file(cell, folder).parent.mkdir(parents=True, exist_ok=True)
        write(failed_file(cell, folder), f"{without_places(reason_of(error))}\n")


def failure(cell: Cell, folder: Path) -> str | None:
    """Why a cell's SAE is not there, if training it was tried."""
    return None if cell.summary(folder) is not None else failed_since(cell, folder)


def failed_since(cell: Cell, folder: Path) -> str | None:
    """Why a cell's SAE could not be had the last time, whether or not it is there from before."""
    try:
        return failed_file(cell, folder).read_text("utf-8").strip()
    except OSError:
        return None
