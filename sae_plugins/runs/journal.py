"""The end of a run as one transaction: all its files move to their places, whatever happens.

Before the first file moves, all of them are on the disk, and a small file beside them, the journal,
lists them. From then on the run has ended, and nothing is trained again: whoever opens its folder
next moves the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import durable, write

JOURNAL = "unfinished.json"


def begin(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Write into `folder` that these files of `source` move there.

    Args:
        source: where they are.
        folder: where each has the same name.
        names: in the order in which they move.

    Raises:
        OSError: that failed, and nothing has moved.
    """
    durable(source, names)
    write(folder / JOURNAL, json.dumps({"moves": [*names]}, indent=1) + "\n")


def pending(folder: Path) -> list[str] | None:
    """The files that the journal in a folder lists; None if there is no journal.

    Raises:
        PluginError: it is damaged.
    """
    path = folder / JOURNAL
    try:
        names = json.loads(path.read_text("utf-8"))["moves"]
        inside = all(_is_inside(PurePosixPath(name)) for name in names)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PluginError(f"{path}, a list of files to be moved, is damaged: {error!r}") from error
    if not inside:
        raise PluginError(f"{path} lists files outside {folder}: it was not written by sae-plugins")
    return list(names)


def _is_inside(name: PurePosixPath) -> bool:
    return not name.is_absolute() and ".." not in name.parts


def carry_out(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Move the files that are not in their places yet.

    Raises:
        OSError: that failed; another call moves the rest.
    """
    for name in names:
        if (source / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / name, folder / name)
    durable(folder, [name for name in names if (folder / name).exists()])


def end(folder: Path) -> None:
    """Remove the journal: all that follows from it is done."""
    (folder / JOURNAL).unlink()
