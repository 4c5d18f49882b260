"""Files that are whole or absent, and stay so when the power fails; locks, versions, the cache."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from stat import S_IMODE
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.secrets import redacted_json

VERSIONS = ("sae-plugins", "sae-lens", "torch", "transformer-lens", "numpy", "python")
"""Distributions whose versions `run.yaml` names; the plugins' own come on top."""


def versions(names: Iterable[str] = VERSIONS) -> dict[str, str]:
    """The installed versions of distributions, and of python."""
    found: dict[str, str] = {}
    for name in names:
        if name == "python":
            found[name] = ".".join(str(part) for part in sys.version_info[:3])
            continue
        try:
            found[name] = _version(name)
        except (PackageNotFoundError, ValueError):  # "" is no name
            continue
    return found


_version = cache(version)  # which parses a file each time


def user_cache() -> Path:
    """`sae-plugins` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sae-plugins"


def lock(folder: Path, busy: SaePluginsError) -> ExitStack:
    """Lock a folder until what is returned is closed, or the process ends.

    The folder itself is locked, so that no file is left in it. Where that is impossible, as on some
    network disks, nothing is locked.

    Raises:
        SaePluginsError: `busy`, if another process has locked it.
    """
    unlock = ExitStack()
    handle = os.open(folder, os.O_RDONLY)
    unlock.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        unlock.close()
        raise busy from None
    except OSError:
        unlock.close()
    return unlock


def durable(folder: Path, names: Iterable[str] | None = None) -> None:
    """Have files of a folder on the disk, with their names, so that a power cut costs none.

    Args:
        folder: it has its name there, too.
        names: paths in it; None for all that it holds.

    Raises:
        OSError: the disk takes nothing more; some say so only now.
    """
    if names is None:
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    paths = [Path(name) for name in names]
    inside = {parent for path in paths for parent in path.parents}
    for path in (*paths, *inside):
        _flush(folder / path)
    _flush(folder.parent)


def _flush(path: Path) -> None:
    """A file's contents, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as on some network disks
            raise
    finally:
        os.close(handle)


@contextmanager
def whole(path: Path, *, writer: str = "") -> Iterator[Path]:
    """Give a file to write, which takes the place of `path` at the end, or goes if anything fails.

    So `path` is either as it was or new and whole, and whoever may read new files of this process
    may read it. A process that is killed leaves a file whose name ends in ".partial".

    Args:
        path: the file.
        writer: tells apart processes that may write the same file at once.
    """
    partial = path.with_name(f"{path.name}{writer}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        if partial.stat().st_mode != mode:
            partial.chmod(S_IMODE(mode))  # safetensors lets nobody else read what it writes
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, busy: SaePluginsError, check: Callable[[], None]) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `path` at the end.

    If anything fails, `path` is as it was, and nothing else is left. A process that is killed
    leaves a folder whose name ends in ".partial", which the next one removes.

    Args:
        path: the folder.
        busy: is raised where another process writes it.
        check: refuses a place that is taken; called at the beginning and before the end.
    """
    path = Path(os.path.abspath(path))
    partial, before = (path.with_name(f"{path.name}.{kind}") for kind in ("partial", "before"))
    if before.is_dir() and not path.exists():  # a process was killed between the last two steps
        os.rename(before, path)
    shutil.rmtree(before, ignore_errors=True)  # or one step later
    check()
    partial.mkdir(parents=True, exist_ok=True)
    with lock(partial, busy):
        try:
            for left in partial.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
            durable(partial)
            check()
            if path.exists():
                os.rename(path, before)
            os.rename(partial, path)
            shutil.rmtree(before, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write(path: Path, text: str, *, writer: str = "") -> None:
    """Write a text file that is either whole or as it was; JSON without secrets.

    `writer` is that of `whole`.
    """
    if path.suffix == ".json":
        text = redacted_json(text)
    with whole(path, writer=writer) as partial:
        partial.write_text(text, "utf-8")


def remove_if_empty(folder: Path) -> bool:
    """Remove a folder that holds nothing; whether it did."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def remove_empty_folders(folder: Path) -> None:
    """Remove what holds no file, the folder itself included."""
    for path, _, _ in os.walk(folder, topdown=False):
        remove_if_empty(Path(path))


def next_free(path: Path) -> Path:
    """The first of NAME-1, NAME-2, ... beside a path that is not there."""
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, or nested deeper than anything that is meant.
    """
    return not_too_deep(lambda: json.loads(path.read_text("utf-8")))


def not_too_deep(read: Callable[[], Any], most: int = 100) -> Any:
    """What is read, if everybody who looks into it can get to its ends.

    Raises:
        ValueError: it is nested deeper than anything that is meant, or contains itself.
    """

    def check(tree: Any, left: int) -> None:
        if not left:
            raise RecursionError
        inside = tree.values() if isinstance(tree, dict) else tree
        for item in inside if isinstance(tree, (dict, list)) else ():
            check(item, left - 1)

    try:
        contents = read()
        check(contents, most)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return contents


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without an unfinished last line."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


_UNITS = ("KB", "MB", "GB", "TB")


def bytes_in(text: str) -> int:
    """A number of bytes as people write it: 50GB, 1.5 TB, 2000000.

    Raises:
        SaePluginsError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?B)?", text.strip().upper())
    if match is None:
        raise SaePluginsError(f"{text!r} is no size: give one such as 50GB or 500MB")
    number, unit = match.groups()
    power: int = ["B", *_UNITS].index(unit or "B")
    return round(float(number) * 1000.0**power)


def size(count: float) -> str:
    """A number of bytes for readers."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in _UNITS[:-1]:
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"
