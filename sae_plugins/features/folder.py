"""A folder that is new and whole, or as it was."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_plugins.base.errors import SaePluginsError, reason
from sae_plugins.base.files import durable, lock
from sae_plugins.features.shards import INDEX

FIRST_BATCH = "batch-0.json"
"""By which a folder for Neuronpedia is known."""
_OURS = re.compile(r"index\.html|page\.css|page\.js|data|batch-\d+\.json")


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a place for pages that is taken.

    Raises:
        SaePluginsError: there is a file, or a folder that is not to be replaced.
    """
    if path.exists() and not path.is_dir():
        raise SaePluginsError(f"--output_path {path} is a file; name a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not any((path / name).is_file() for name in (INDEX, FIRST_BATCH)):
        raise SaePluginsError(
            f"--output_path {path} holds something else than feature pages; name a new folder"
        )
    if others := sorted(p.name for p in path.iterdir() if not _OURS.fullmatch(p.name)):
        raise SaePluginsError(
            f"--output_path {path} holds {', '.join(others[:3])} besides feature pages; move that, "
            "or name another folder"
        )
    if not overwrite:
        raise SaePluginsError(
            f"{path} holds feature pages already; add --overwrite to replace them, or name another "
            "folder with --output_path"
        )


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `path` at the end.

    If anything fails, `path` is as it was, and nothing else is left. A process that is killed
    leaves a folder whose name ends in ".partial", which the next one removes.

    Raises:
        SaePluginsError: the place is taken, or another process writes there, or the disk is full.
    """
    path = Path(os.path.abspath(path))
    partial, before = (path.with_name(f"{path.name}.{kind}") for kind in ("partial", "before"))
    if before.is_dir() and not path.exists():  # a process was killed between the last two steps
        os.rename(before, path)
    shutil.rmtree(before, ignore_errors=True)  # or one step later
    check_place(path, overwrite)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaePluginsError(f"--output_path {path} cannot be made: {reason(error)}") from error
    with lock(partial, SaePluginsError(f"another process writes feature pages into {path}")):
        try:
            for left in partial.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
            durable(partial)
            check_place(path, overwrite)
            if path.exists():
                os.rename(path, before)
            os.rename(partial, path)
            shutil.rmtree(before, ignore_errors=True)
        except OSError as error:
            failure = SaePluginsError(
                f"the pages could not be written to {path}: {reason(error)}; nothing is left of "
                "them"
            )
            failure.exit_code = 1
            raise failure from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
