"""What has been computed from the language model alone, kept on disk for the next SAE and run.

An entry is a safetensors file named by a hash of everything that it depends on, the code that
computes it included. It is written beside its place and renamed, so that it is whole or not there,
also when two evaluations write the same one. It carries a digest: one that is damaged is computed
again, and a warning names it. The least recently used entries go when the folder grows beyond its
limit.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_plugins.base.code import EVALUATING, code
from sae_plugins.base.files import user_cache, versions, whole
from sae_plugins.base.fingerprints import digest_of, fingerprint

logger = logging.getLogger(__name__)

Cached = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors by name, and texts by name."""

DEFAULT_LIMIT = 100_000_000_000
SPARE = 2_000_000_000
"""Bytes of the disk that are left free, for the results."""
_TEXTS, _DIGEST = "texts", "digest"
_SUFFIX, _PARTIAL = ".safetensors", ".partial"
_DAY = 24 * 60 * 60
VERSIONS = ("sae-bench", "scikit-learn", "torch", "transformer-lens", "transformers")
"""Distributions that compute what is kept."""


def default_folder() -> Path:
    """`evaluation` in our part of the user's cache folder."""
    return user_cache() / "evaluation"


class Cache:
    """A bounded folder of entries; see the module's docstring."""

    def __init__(
        self, folder: Path, limit: int = DEFAULT_LIMIT, suites: Iterable[type] = ()
    ) -> None:
        """Name the folder; nothing happens yet.

        Args:
            folder: where entries are.
            limit: bytes that it may hold.
            suites: those who use it; an edit of their own files makes other entries.
        """
        self.folder = folder
        self.limit = limit
        self._made_by = fingerprint(code(EVALUATING, suites), versions(VERSIONS))

    def get(self, kind: str, key: str, compute: Callable[[], Cached]) -> Cached:
        """The entry, from disk or else computed; a full disk only means that it is not kept.

        Args:
            kind: what it is, for people who look into the folder.
            key: a `fingerprint` of everything that it depends on, but the code that computes it.
            compute: gives the entry; called at most once.
        """
        path = self.path(kind, key)
        found = _read(path)
        if found is None:
            found = compute()
            self._write(path, found)
        return found

    def path(self, kind: str, key: str) -> Path:
        """The file of an entry."""
        return self.folder / kind / (fingerprint(key, self._made_by) + _SUFFIX)

    def _write(self, path: Path, entry: Cached) -> None:
        tensors, texts = entry
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with suppress(OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path, writer=f".{uuid4().hex}") as partial:
                metadata = {_TEXTS: json.dumps(texts)}
                metadata[_DIGEST] = digest_of(metadata[_TEXTS], tensors)
                save_file(tensors, partial, metadata)
                size = partial.stat().st_size
                if size > self.limit or shutil.disk_usage(path.parent).free <= SPARE:
                    raise OSError("there is no room for it")
                self._make_room(size)

    def _make_room(self, size: int) -> None:
        """Remove the least recently used entries until so many bytes fit in."""
        entries = []
        for file in self.folder.glob("*/*"):
            try:
                status = file.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if file.name.endswith(_SUFFIX):
                entries.append((status.st_mtime_ns, status.st_size, file))
            elif file.name.endswith(_PARTIAL) and time.time() - status.st_mtime > _DAY:
                file.unlink(missing_ok=True)  # of a process that was killed
        total = sum(entry[1] for entry in entries)
        for _, freed, file in sorted(entries):
            if total + size <= self.limit:
                return
            file.unlink(missing_ok=True)
            total -= freed


def _read(path: Path) -> Cached | None:
    """An entry; None, with a warning where it is damaged, if there is none."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if digest_of(metadata[_TEXTS], tensors) != metadata[_DIGEST]:
            raise ValueError("its contents do not match its digest")
        texts: dict[str, str] = json.loads(metadata[_TEXTS])
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
        logger.warning("%s is damaged and is computed again: %s", path, error)
        return None
    with suppress(OSError):
        os.utime(path)  # it has been used
    return tensors, texts
