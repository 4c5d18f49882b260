"""Checkpoint files: their names, their contents, and the newest that is whole."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import PluginError, StateError
from sae_plugins.base.ranks import Ranks

logger = logging.getLogger(__name__)

FORMAT = 1
"""The version of what a checkpoint holds."""
_CONTENTS = {
    *("facts", "versions", "notes", "random", "stream", "stream_facts", "provider", "trainers"),
}
"""What every checkpoint has."""
CURE = "go on with the versions of sae-plugins, SAELens and torch that wrote it"


def interval(every: str) -> tuple[int | None, float | None]:
    """Steps and seconds between checkpoints, one of them None: "500" steps, "10min", "0" for none.

    Raises:
        PluginError: it is neither.
    """
    match = re.fullmatch(r"(\d+)( ?steps?)?|(\d+(?:\.\d+)?) ?min(?:utes?)?", every.strip())
    if match is None:
        raise PluginError(
            f"{every!r} is no interval between checkpoints: give steps (500), or minutes (10min)"
        )
    steps, _, minutes = match.groups()
    return (int(steps), None) if steps else (None, 60 * float(minutes))


def checkpoint(folder: Path, step: int) -> Path:
    """The file of the checkpoint after so many steps."""
    return folder / f"step-{step:09d}.safetensors"


def shard_of(path: Path, k: int | str) -> Path:
    """The file of a data shard of a checkpoint, beside it."""
    return path.with_name(f"{path.stem}.shard{k}.safetensors")


def shards_of(path: Path) -> list[Path]:
    """The files of all data shards of a checkpoint."""
    return sorted(path.parent.glob(f"{path.stem}.shard*.safetensors"))


def remove(path: Path) -> None:
    """Remove a checkpoint, the main file first, without which its shards are none."""
    shards = shards_of(path)
    path.unlink(missing_ok=True)
    for file in shards:
        file.unlink(missing_ok=True)


def files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(_named(folder, r"\.safetensors"), key=step_of, reverse=True)


def partial_files(folder: Path) -> list[Path]:
    """What processes that were killed have left of checkpoints that they were writing."""
    of_safetensors = folder.glob(".tmp??????")  # which gives them their names at the end
    partial = _named(folder, r"(\.shard\d+)?\.safetensors\.partial")
    shards = _named(folder, r"\.shard\d+\.safetensors")
    without = [path for path in shards if not checkpoint(folder, step_of(path)).exists()]
    return [*partial, *without, *of_safetensors]


def _named(folder: Path, ending: str) -> list[Path]:
    """Files of checkpoints by their names; whatever else is there is somebody's."""
    name = re.compile(rf"step-\d+{ending}")
    return [path for path in folder.glob("step-*") if name.fullmatch(path.name)]


def step_of(path: Path) -> int:
    """Completed training steps in a checkpoint, by its name."""
    return int(path.name.removeprefix("step-").partition(".")[0])


def newest(folder: Path, ranks: Ranks | None = None) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that is whole; a damaged one is skipped with a warning.

    Several ranks find the same one: each looks at its share of the shards' files, and what is
    damaged for one of them is so for all.

    Args:
        folder: with the checkpoints.
        ranks: who ask; None for this process alone.

    Raises:
        StateError: there is none; says what is wrong with each.
    """
    together = Ranks() if ranks is None else ranks
    broken: list[str] = []
    for path in together.first(files(folder)):
        tree, reason = _read(path, together)
        said = together.all(reason, patiently=True)
        if any(said):
            broken += [one for one in dict.fromkeys(said) if one]
            continue
        if not tree.keys() >= _CONTENTS:
            missing = ", ".join(sorted(_CONTENTS - tree.keys()))
            raise StateError(f"{path} lacks {missing}: {CURE}")
        for reason in broken:
            logger.warning("%s; going on from the one before it, %s", reason, path.name)
        return path, tree
    told = "; ".join(broken) or f"there is no checkpoint in {folder}"
    raise StateError(f"{told}. Nothing can be resumed: start the run again")


def _read(path: Path, ranks: Ranks) -> tuple[dict[str, Any], str | None]:
    """A checkpoint's main file, and what is wrong with it or with a rank's share of the shards."""
    from sae_plugins.resume.state import read_state  # imports torch

    try:
        tree = read_state(path)
        if tree.get("format") != FORMAT:
            raise StateError(
                f"{path} has format {tree.get('format')!r}, and this version of sae-plugins "
                f"reads format {FORMAT}: go on with the version that wrote it"
            )
        count = (tree.get("stream") or {}).get("shards", 0)
        for k in range(ranks.rank, count, ranks.size):
            read_state(shard_of(path, k))
    except StateError as error:
        return {}, str(error)
    return tree, None
