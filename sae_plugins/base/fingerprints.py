"""Hashes: of files, which are read once and again only when they move, and of what is in memory."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import xxhash

from sae_plugins.base.files import user_cache, whole
from sae_plugins.base.patches import replaced

if TYPE_CHECKING:
    from torch import Tensor

_SETTLED = 2_000_000_000
"""Nanoseconds: a file that changed within them may change again and bear the same time."""
_CHUNK = 1 << 24
_SHOWN = 2_000_000_000
"""Bytes from which reading files shows a bar."""
_OF_TOOLS = re.compile(r"\..*|cache-.*|tmp\w{8}|__pycache__")
"""Names of what is no data: hidden files, and what `datasets` caches beside data."""


# -- files -----------------------------------------------------------------------------------------


def of_files(path: Path) -> dict[str, str | None]:
    """A hash of each file in a folder, or of the one that `path` is, by its path in there.

    Files are read once; later, only those are read whose size, times or inode are others. What
    cannot be read has None.
    """
    from tqdm.auto import tqdm

    root = path if path.is_dir() else path.parent
    files = sorted(_inside(path, frozenset())) if path.is_dir() else [path]
    found: dict[str, str | None] = {}
    with Remembered("bytes", path, hash_of) as hashes:
        size = sum(os.path.getsize(file) for file in files if file.exists())
        for file in tqdm(files, f"Looking at {path}", disable=size < _SHOWN, leave=False):
            name = file.relative_to(root).as_posix()
            found[name] = None
            with suppress(OSError):
                found[name] = hashes.of(file)
    return found


def _inside(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Its files; links are followed, since the Hub's cache consists of them.

    A folder that cannot be read stands for what is in it.
    """
    real = folder.resolve()
    try:
        entries = list(folder.iterdir()) if real not in above else []
    except OSError:
        entries = []
        yield folder
    for entry in entries:
        if _OF_TOOLS.fullmatch(entry.name):
            continue
        if entry.is_dir():
            yield from _inside(entry, above | {real})
        elif entry.is_file():
            yield entry


def hash_of(file: Path) -> str:
    """A hash of a file's bytes, which are read now."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Remembered:
    """What was computed of files, kept in the user's cache folder until a file moves.

    A record that is damaged counts as none, and one that cannot be written is not kept.
    """

    def __init__(self, kind: str, root: Path, compute: Callable[[Path], Any]) -> None:
        """Describe a record; `with` reads it, and writes it where something is new.

        Args:
            kind: what is computed, and in which way.
            root: what the files belong to.
            compute: gives a JSON value of a file.
        """
        name = of_value([kind, str(root.absolute())])
        self._path = user_cache() / "fingerprints" / f"{name}.json"
        self._compute = compute
        self._known: dict[str, Any] = {}
        self._is_new = False

    def __enter__(self) -> Remembered:
        with suppress(OSError, ValueError, TypeError, KeyError):
            digest, files = json.loads(self._path.read_text("utf-8"))
            if digest == of_value(files):
                self._known = files
        return self

    def of(self, file: Path) -> Any:
        """The value of a file."""
        status, key = file.stat(), str(file.absolute())
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        if (known := self._known.get(key)) is not None and known[0] == state:
            return known[1]
        value = self._compute(file)
        # what changed just now may change again without a later time
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED:
            self._known[key], self._is_new = [state, value], True
        return value

    def __exit__(self, *_: object) -> None:
        if not self._is_new:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with whole(self._path, writer=f".{uuid4().hex}") as partial:
                partial.write_text(json.dumps([of_value(self._known), self._known]), "utf-8")


def nothing_remembered() -> AbstractContextManager[None]:
    """Leave the cache folder as it is, while this is open."""
    return replaced(Remembered, __exit__=lambda *_: None)


# -- what is in memory -----------------------------------------------------------------------------


def of_value(value: Any) -> str:
    """A hash of a JSON value; the order of names does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(text.encode())


def fingerprint(*parts: Any) -> str:
    """A hash, 32 hex digits, of tensors (dtype, shape and bytes) and of what prints alike."""
    from torch import Tensor

    digest = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            for some in _pieces(part):
                digest.update(some)
        elif isinstance(part, Mapping):
            for name in sorted(part, key=str):
                digest.update(fingerprint(str(name), part[name]).encode())
        elif isinstance(part, (list, tuple)):
            digest.update(f"{type(part).__name__}{fingerprint(*part)}".encode())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of its numbers in their order, of which a few at a time come to the CPU."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    for some in flat.split(_CHUNK) if flat.numel() else ():
        yield some.cpu().contiguous().view(torch.uint8).numpy().data


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """The digest that a file of tensors carries, by which damage is seen.

    Args:
        text: what else is in the file.
        tensors: dense ones on the CPU, by name.
    """
    import torch

    digest = xxhash.xxh3_128(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.as_strided((tensor.numel(),), (1,))  # with one element it has any stride
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
