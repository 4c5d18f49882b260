"""The folder of a run on a rank that writes nothing: rank 0 has the run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae_plugins.base.ranks import ranks
from sae_plugins.runs.folder import OUR_CHECKPOINTS, UNFINISHED
from sae_plugins.runs.run_folder import RunFolder


class FollowersFolder(RunFolder):
    """A `RunFolder` of which only the checkpoints are the run's.

    What SAELens, the recorder or a plugin writes goes into a folder that is removed in the end.
    """

    def __init__(self, path: Path) -> None:
        """Name the run's folder, which rank 0 checks and locks."""
        super().__init__(path)
        self._scratch = TemporaryDirectory(prefix="sae-plugins-rank-")
        self.unfinished = Path(self._scratch.name)

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie, of which this rank writes its data shards'."""
        return self.path / UNFINISHED / OUR_CHECKPOINTS

    def check(self, overwrite: bool) -> None:
        """Rank 0 does it."""

    def reopen(self) -> bool:
        """Rank 0 does it."""
        return True

    def check_space(self, sae: int, checkpoints: int) -> None:
        """Rank 0 does it."""

    def start(self, recipe: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
        """Rank 0 does it."""
        return self.unfinished

    def describe(self, files: Mapping[str, bytes], recipe: Mapping[str, Any] | None = None) -> None:
        """Rank 0 does it."""

    def note_trained(self, known: Mapping[str, Any]) -> None:
        """Rank 0 does it."""

    def abandon(self) -> None:
        """Rank 0 says what is left."""

    def release(self) -> None:
        """Remove what this rank has written."""
        self._scratch.cleanup()


def folder_of_rank(path: Path) -> RunFolder:
    """The run's folder on rank 0, and on the others one that leaves nothing."""
    return RunFolder(path) if ranks().writes else FollowersFolder(path)
