"""What has been computed from the language model alone, kept on disk for the next SAE and run.

An entry is a safetensors file named by a hash of everything that it depends on. It is written
beside its place and renamed, so that it is whole or not there, also when two evaluations write the
same one; a file that cannot be read is computed again. The least recently used entries go when the
folder grows beyond its limit.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_plugins.base.files import versions, whole

Cached = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors by name, and texts by name."""

DEFAULT_LIMIT = 100_000_000_000
SPARE = 2_000_000_000
"""Bytes of the disk that are left free, for the results."""
_SUFFIX, _PARTIAL = ".safetensors", ".partial"
_DAY = 24 * 60 * 60
VERSIONS = ("sae-bench", "scikit-learn", "torch", "transformer-lens", "transformers")
"""Distributions that compute what is kept."""


def default_folder() -> Path:
    """`sae-plugins/evaluation` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sae-plugins" / "evaluation"


def fingerprint(*parts: Any) -> str:
    """A hash, 32 hex digits, of tensors (dtype, shape and bytes) and of what prints alike."""
    digest = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            data = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(data.numpy().data)
        elif isinstance(part, Mapping):
            for name in sorted(part, key=str):
                digest.update(fingerprint(str(name), part[name]).encode())
        elif isinstance(part, (list, tuple)):
            digest.update(f"{type(part).__name__}{fingerprint(*part)}".encode())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class Cache:
    """A bounded folder of entries; see the module's docstring."""

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        """Name the folder, and the bytes that it may hold; nothing happens yet."""
        self.folder = folder
        self.limit = limit

    def get(self, kind: str, key: str, compute: Callable[[], Cached]) -> Cached:
        """The entry, from disk or else computed; a full disk only means that it is not kept.

        Args:
            kind: what it is, for people who look into the folder.
            key: a `fingerprint` of everything that it depends on, but the versions of libraries.
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
        return self.folder / kind / (fingerprint(key, versions(VERSIONS)) + _SUFFIX)

    def _write(self, path: Path, entry: Cached) -> None:
        tensors, texts = entry
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with suppress(OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path, writer=f".{uuid4().hex}") as partial:
                save_file(tensors, partial, texts)
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
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = dict(file.metadata() or {})
        os.utime(path)  # it has been used
    except (OSError, SafetensorError):
        return None
    return tensors, texts
