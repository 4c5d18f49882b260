"""What an output folder holds: a row for each suite, SAE and seed, in `manifest.json`.

Several processes may write results into one folder at once, each with a manifest of its own in
`parts/`; whoever reads the folder reads them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from sae_plugins.base.errors import SaePluginsError

MANIFEST = "manifest.json"
PARTS = "parts"


def parts(folder: Path) -> list[Path]:
    """The folders of the parts, the latest at the end: what an earlier one says has passed."""

    def written(part: Path) -> float:
        with suppress(OSError):  # merged meanwhile
            return part.stat().st_mtime_ns
        return 0

    return sorted(folder.glob(f"{PARTS}/*/"), key=written)


class Row(BaseModel, extra="forbid"):
    """One suite's verdict about one SAE with one seed, or that it is still to come."""

    suite: str
    sae: str
    """The SAE's name; its source where it could not be loaded."""
    source: str
    sae_hash: str | None = None
    seed: int
    settings: str
    """A hash of the suite's settings: results of others are not to be compared."""
    status: Literal["planned", "running", "ok", "failed", "not applicable"] = "planned"
    reason: str | None = None
    file: str | None = None
    """The `Result`, relative to the output folder."""

    def replaces(self, earlier: Row) -> bool:
        """Whether both are about the same suite, settings, seed and SAE."""
        same = all(getattr(self, x) == getattr(earlier, x) for x in ("suite", "settings", "seed"))
        return same and (
            self.source == earlier.source
            or (self.sae_hash is not None and self.sae_hash == earlier.sae_hash)
        )


class Manifest(BaseModel, extra="forbid"):
    """What an output folder holds, of all evaluations into it."""

    schema_version: Literal[1] = 1
    revisions: dict[str, str] = {}
    """Commits of the datasets that were read, so that later evaluations read the same."""
    models: dict[str, str] = {}
    """Hashes of the language models by name."""
    rows: list[Row] = []

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in a folder, with its parts; an empty one where there is none.

        Raises:
            SaePluginsError: a file is damaged.
        """
        whole = cls._read(folder)
        for part in parts(folder):
            found = cls._read(part)
            whole.revisions |= found.revisions
            whole.models |= found.models
            whole.add(found.rows)
        return whole

    @classmethod
    def _read(cls, folder: Path) -> Manifest:
        try:
            return cls.model_validate_json((folder / MANIFEST).read_text("utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise SaePluginsError(
                f"{folder / MANIFEST} cannot be read: remove it (results that are there are found "
                f"again), or choose another folder: {type(error).__name__}"
            ) from error

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows, in place of earlier ones about the same, and sort."""
        rows = list(rows)
        earlier = [old for old in self.rows if not any(row.replaces(old) for row in rows)]
        self.rows = sorted(
            [*earlier, *rows],
            key=lambda row: (row.suite, row.settings, row.sae, row.sae_hash or "", row.seed),
        )
