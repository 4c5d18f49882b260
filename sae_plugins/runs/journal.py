"""The end of a run as one transaction: all its files move to their places, whatever happens.

Before the first file moves, all of them are on the disk, and a small file beside them, the journal,
lists them, with those of an earlier run that go. From then on the run has ended, and nothing is
trained again: whoever opens its folder next does the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import durable, write
from sae_plugins.runs.folder import is_inside, own_files, remove

JOURNAL = "unfinished.json"


@dataclass(frozen=True)
class Moves:
    """What the end of a run does to its folder.

    Attributes:
        moves: the files that come into it, in the order in which they move.
        removes: the files of an earlier run in it that have no successor.
    """

    moves: Sequence[str]
    removes: Sequence[str]


def begin(source: Path, folder: Path, moves: Moves) -> None:
    """Write into `folder` what is to be done.

    Args:
        source: where the files are.
        folder: where each has the same name.
        moves: which files.

    Raises:
        OSError: that failed, and nothing has moved.
    """
    durable(source, moves.moves)
    write(folder / JOURNAL, json.dumps(asdict(moves), indent=1) + "\n")


def pending(folder: Path) -> Moves | None:
    """What the journal in a folder says; None if there is no journal.

    Raises:
        PluginError: it is damaged.
    """
    path = folder / JOURNAL
    try:
        said = json.loads(path.read_text("utf-8"))
        moves = said["moves"]
        if "removes" not in said:  # an earlier version wrote it
            said["removes"] = [name for name in own_files(folder) if name not in moves]
        inside = all(is_inside(name) for name in (*moves, *said["removes"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PluginError(f"{path}, a list of files to be moved, is damaged: {error!r}") from error
    if not inside:
        raise PluginError(f"{path} lists files outside {folder}: it was not written by sae-plugins")
    return Moves(moves, said["removes"])


def carry_out(source: Path, folder: Path, moves: Moves) -> None:
    """Move the files that are not in their places yet, and remove what has none.

    Raises:
        OSError: that failed; another call does the rest.
    """
    for name in moves.moves:
        if (source / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / name, folder / name)
    durable(folder, [name for name in moves.moves if (folder / name).exists()])
    remove(folder, moves.removes)


def end(folder: Path) -> None:
    """Remove the journal: all that follows from it is done."""
    (folder / JOURNAL).unlink()
