"""What is computed once and kept on disk, in FOLDER/KIND/; no slow imports.

An entry is a safetensors file that is named by a hash of what it depends on. It is written beside
its place and renamed, so that it is whole or not there, also when two processes write the same
one. It carries a digest, by which damage is seen, and a few words about what it is made from.
"""

from __future__ import annotations

import json
import os
import re
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from sae_plugins.base.alive import Alive, living
from sae_plugins.base.files import whole
from sae_plugins.base.fingerprints import digest_of

if TYPE_CHECKING:
    from torch import Tensor

Cached = tuple[dict[str, "Tensor"], dict[str, str]]
"""Tensors by name, and texts by name."""

SUFFIX = ".safetensors"
SPARE = 2_000_000_000
"""Bytes of the disk that are left free, for the results."""
_TEXTS, _DIGEST, _ABOUT = "texts", "digest", "about"
_IN_USE = "in-use"
_METADATA = "__metadata__"
_NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(SUFFIX)}")
_LEFT = re.compile(rf"{_NAME.pattern}\.[0-9a-f]{{32}}\.partial|\.tmp\w{{6}}")
"""Names of what a process that is killed leaves; safetensors gives the last ones."""
_DAY = 24 * 60 * 60
KINDS = {
    "activations": "activations of",
    "answers": "answers of another language model about",
    "dataset_activations": "activations of labelled texts of",
    "first_letter_probes": "probes for first letters of",
    "probes": "probes of",
    "ravel_prompts": "questions that are answered rightly by",
    "right_answers": "questions that are answered rightly in all orders by",
}
"""What entries hold, by the names of their folders as far as a hyphen, in words."""


@dataclass(frozen=True)
class Folder:
    """Where entries are kept.

    Attributes:
        path: the folder.
        budget: bytes that they may take.
        takes: whether there may be new ones.
    """

    path: Path
    budget: int
    takes: bool = True


class InUse:
    """Says in a folder which kinds of its entries this process uses, while somebody holds this.

    What lies read-only is used without a word: nobody can remove anything there.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is written."""
        self._folder, self._kinds = folder / _IN_USE, set[str]()
        self._alive: Alive | None = None

    def add(self, kind: str) -> None:
        """Use entries of a kind, if the folder is there."""
        if kind in self._kinds or not self._folder.parent.is_dir():
            return
        self._kinds.add(kind)
        if self._alive is not None:
            self._alive.tell(kinds=sorted(self._kinds))
            return
        self._alive = Alive(self._folder, uuid4().hex)
        with suppress(OSError):
            self._alive.begin(kinds=sorted(self._kinds))
            weakref.finalize(self, self._alive.vanish)


def kinds_in_use(folder: Path) -> set[str]:
    """The names of the folders of entries that living processes use, on whatever machine."""
    return {kind for told in living(folder / _IN_USE).values() for kind in told.get("kinds", ())}


class Damaged(Exception):
    """An entry cannot be read, or is not what was written."""


def write(
    path: Path, kept: Cached, about: str = "", check: Callable[[int], None] = lambda size: None
) -> None:
    """Write an entry.

    Args:
        path: where it will be.
        kept: what it holds.
        about: what it is made from, in words.
        check: told its bytes before it takes its place; an OSError says that it does not fit.

    Raises:
        OSError: it could not be written, and nothing of it is there.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in kept[0].items()}
    metadata = {_TEXTS: json.dumps(kept[1]), _ABOUT: about}
    metadata[_DIGEST] = digest_of(about + metadata[_TEXTS], tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole(path, writer=f".{uuid4().hex}") as partial:
            save_file(tensors, partial, metadata)
            check(partial.stat().st_size)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read(path: Path, *, is_use: bool = True) -> Cached | None:
    """An entry; None if it is not there.

    Args:
        path: the file.
        is_use: note when it was used last.

    Raises:
        Damaged: it is damaged, or no entry.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if digest_of(metadata.get(_ABOUT, "") + metadata[_TEXTS], tensors) != metadata[_DIGEST]:
            raise ValueError("its contents do not match its digest")
        texts: dict[str, str] = json.loads(metadata[_TEXTS])
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
        raise Damaged(str(error)) from error
    if is_use:
        with suppress(OSError):
            os.utime(path)
    return tensors, texts


def _metadata(path: Path) -> dict[str, str] | None:
    """The texts at the beginning of a safetensors file, without NumPy; None if it is not whole."""
    try:
        with path.open("rb") as file:
            length, whole = int.from_bytes(file.read(8), "little"), path.stat().st_size
            header = json.loads(file.read(min(length, whole)))
        texts = header.pop(_METADATA, {})
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        return dict(texts) if 8 + length + end == whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _kind(path: Path) -> str:
    return path.parent.name.partition("-")[0]


@dataclass(frozen=True)
class Entry:
    """A file of ours in a folder.

    Attributes:
        path: the file.
        size: in bytes.
        used: when it was read or written last, in seconds since 1970.
    """

    path: Path
    size: int
    used: float

    @property
    def kind(self) -> str:
        """What it is, as its folder says, without the hash of what it depends on."""
        return _kind(self.path)

    @property
    def is_left(self) -> bool:
        """Whether it is what a process that was killed has left."""
        return _NAME.fullmatch(self.path.name) is None

    def about(self) -> str | None:
        """What it is made from, in words; None where its first bytes cannot be read.

        Raises:
            LookupError: it is not ours.
        """
        metadata = _metadata(self.path)
        if metadata is None and self.kind in KINDS:
            return None
        if metadata is None or _DIGEST not in metadata:
            raise LookupError(f"{self.path} is no entry")
        return metadata.get(_ABOUT, "")

    def is_damaged(self) -> bool:
        """Whether nobody can use it; reads all of it."""
        try:
            return self.is_left or read(self.path, is_use=False) is None
        except Damaged:
            return True


def entries(folder: Path) -> list[Entry]:
    """The files in a folder that are named as ours are, the least recently used first.

    Links, and what may be just being written, are not among them.
    """
    found = []
    for path in folder.glob("*/*"):
        # names such as .tmp123abc may be anybody's, so that the folder must be of ours
        is_left = _LEFT.fullmatch(path.name) is not None and _kind(path) in KINDS
        if (not is_left and not _NAME.fullmatch(path.name)) or path.is_symlink():
            continue
        with suppress(FileNotFoundError):  # another process was faster
            status = path.stat()
            is_old = time.time() - status.st_mtime > _DAY
            if S_ISREG(status.st_mode) and (is_old or not is_left):
                found.append(Entry(path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def total(folder: Path) -> int:
    """The bytes of all entries in a folder."""
    return sum(entry.size for entry in entries(folder))


def above(found: Iterable[Entry], limit: int) -> list[Entry]:
    """The first of these entries, without which the others fit into so many bytes."""
    found = list(found)
    left = sum(entry.size for entry in found)
    gone = []
    for entry in found:
        if left <= limit:
            break
        gone.append(entry)
        left -= entry.size
    return gone
