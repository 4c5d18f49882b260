"""What has been computed from the language model alone, kept on disk for the next SAE and run.

An entry, as `sae_plugins.base.kept` has it, is named by a hash of everything that it depends on,
the code that computes it included. One that is damaged is computed again, and a warning names it.
The least recently used entries go when the folder grows beyond its limit.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from sae_plugins.base import kept
from sae_plugins.base.code import EVALUATING, code
from sae_plugins.base.files import user_cache, versions
from sae_plugins.base.fingerprints import fingerprint

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 100_000_000_000
VERSIONS = ("sae-bench", "scikit-learn", "torch", "transformer-lens", "transformers")
"""Distributions that compute what is kept."""


def default_folder() -> Path:
    """`evaluation` in our part of the user's cache folder."""
    return user_cache() / "evaluation"


class Cache:
    """A bounded folder of entries; see the module's docstring."""

    def __init__(
        self,
        folder: Path,
        limit: int = DEFAULT_LIMIT,
        suites: Iterable[type] = (),
        about: str = "",
    ) -> None:
        """Name the folder; nothing happens yet.

        Args:
            folder: where entries are.
            limit: bytes that it may hold.
            suites: those who use it; an edit of their own files makes other entries.
            about: of which language model its entries are, in words.
        """
        self.folder = folder
        self.limit = limit
        self.about = about
        self._in_use = kept.InUse(folder)
        self._made_by = fingerprint(code(EVALUATING, suites), versions(VERSIONS))

    def get(
        self, kind: str, key: str, compute: Callable[[], kept.Cached], *, by_code: bool = True
    ) -> kept.Cached:
        """The entry, from disk or else computed; a full disk only means that it is not kept.

        Args:
            kind: what it is, for people who look into the folder.
            key: a `fingerprint` of everything that it depends on, but the code that computes it.
            compute: gives the entry; called at most once.
            by_code: whether the code that computes it matters; not to what others answered.
        """
        self._in_use.add(kind)
        path = self.path(kind, key) if by_code else self.folder / kind / (key + kept.SUFFIX)
        found: kept.Cached | None = None
        try:
            found = kept.read(path)
        except kept.Damaged as error:
            logger.warning("%s is damaged and is computed again: %s", path, error)
        if found is None:
            found = compute()
            with suppress(OSError):
                kept.write(path, found, self.about, self._make_room)
        return found

    def path(self, kind: str, key: str) -> Path:
        """The file of an entry."""
        return self.folder / kind / (fingerprint(key, self._made_by) + kept.SUFFIX)

    def _make_room(self, size: int) -> None:
        """Remove the least recently used entries until so many bytes fit in.

        Raises:
            OSError: they never do.
        """
        if size > self.limit or shutil.disk_usage(self.folder).free <= kept.SPARE:
            raise OSError("there is no room for it")
        entries = kept.entries(self.folder)
        left = [entry for entry in entries if entry.is_left]
        for entry in (*left, *kept.above(entries, self.limit - size)):
            entry.path.unlink(missing_ok=True)
