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

from sae_plugins.base.files import read_json, remove_if_empty
from sae_plugins.base.fingerprints import of_value
from sae_plugins.resume.files import files, partial_files, remove

CHECKPOINTS = "checkpoints"
"""In a study's folder, while SAEs train."""
NAMES = "arms.json"


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

    def begun(self) -> Iterator[tuple[Place, list[str]]]:
        """The places that hold checkpoints, and the names of the SAEs in them."""
        for file in sorted(self.folder.glob(f"*/{NAMES}")):
            with suppress(OSError, ValueError):  # another process has ended, and removed it
                names = read_json(file)
                if isinstance(names, list) and files(file.parent):
                    yield Place(file.parent, self.every), [str(name) for name in names]


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
    begun = Kept(folder).begun()
    serving = [place.folder for place, names in begun if {*names}.intersection(wanted)]
    for file in folder.glob(f"*/{NAMES}"):
        if file.parent not in serving:
            discard(file.parent)
    remove_if_empty(folder)
