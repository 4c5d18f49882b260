"""Where the checkpoints of SAEs that train together lie: a folder for each such group; no torch.

checkpoints/HASH/arms.json                 the names of the SAEs
checkpoints/HASH/step-*.safetensors        the state of all of them
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.files import lock, read_json, remove_if_empty
from sae_plugins.base.fingerprints import of_value
from sae_plugins.resume.files import files, partial_files, remove

CHECKPOINTS = "checkpoints"
"""In a study's folder, while SAEs train."""
NAMES = "arms.json"


class _Busy(SaePluginsError):
    """Another process writes its checkpoints there."""


class Place(NamedTuple):
    """Where the checkpoints of one group lie."""

    folder: Path
    every: str


@dataclass(frozen=True)
class Kept:
    """Where the state of SAEs that train together is kept, to go on from, and how often.

    Attributes:
        folder: has a folder for each group that trains together.
        every: time or steps between checkpoints, as in `--checkpoint_every`: "10min", "500".
    """

    folder: Path
    every: str = "10min"

    def of(self, names: Iterable[str]) -> Place:
        """The place of SAEs that begin to train together."""
        return Place(self.folder / of_value([*names])[:16], self.every)

    def begun(self, wanted: Collection[str]) -> Iterator[tuple[Place, list[str]]]:
        """The places that hold checkpoints of SAEs that are wanted, and the names of these.

        Those that another process has are its own.
        """
        for place in _groups(self.folder):
            names = [name for name in _names(place) if name in wanted]
            if names and files(place) and _is_free(place):
                yield Place(place, self.every), names


def _groups(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{NAMES}"))


def _names(place: Path) -> list[str]:
    """The SAEs of a group; none where that is damaged, or gone by now."""
    with suppress(OSError, ValueError):
        names = read_json(place / NAMES)
        return [str(name) for name in names] if isinstance(names, list) else []
    return []


def _is_free(place: Path) -> bool:
    with suppress(_Busy, OSError), lock(place, _Busy()):
        return True
    return False


def discard(folder: Path) -> None:
    """Remove the checkpoints of SAEs that trained together, and the folder."""
    for file in (*files(folder), *partial_files(folder)):
        remove(file)
    for name in (NAMES, f"{NAMES}.partial"):
        (folder / name).unlink(missing_ok=True)
    remove_if_empty(folder)


def discard_others(folder: Path, wanted: Collection[str]) -> None:
    """Remove what no SAE can go on from that is still wanted, and the whole folder if it is empty.

    Args:
        folder: has a folder for each group that trained together.
        wanted: the SAEs' names.
    """
    for place in _groups(folder):
        serves = files(place) and not {*_names(place)}.isdisjoint(wanted)
        if not serves and _is_free(place):
            discard(place)
    remove_if_empty(folder)
