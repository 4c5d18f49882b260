"""A folder that is new and whole, or as it was."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sae_plugins.base.errors import SaePluginsError, reason
from sae_plugins.base.files import whole_folder
from sae_plugins.eval_suites.evaluation.sources import name_of
from sae_plugins.features.shards import INDEX

FIRST_BATCH = "batch-0.json"
"""By which a folder for Neuronpedia is known."""
_OURS = re.compile(r"index\.html|page\.css|page\.js|data|batch-\d+\.json")


def default_place(sources: Sequence[str]) -> Path:
    """The folder of pages for which nobody names one."""
    return Path("features") / "-vs-".join(map(name_of, sources))


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
            "folder with --output_path (in Python: overwrite=True, or another output_path)"
        )


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write pages into, which takes the place of `path` at the end.

    Raises:
        SaePluginsError: the place is taken, or another process writes there, or the disk is full.
    """
    path = Path(os.path.abspath(path))
    busy = SaePluginsError(f"another process writes feature pages into {path}")
    with ExitStack() as stack:
        try:
            whole = whole_folder(path, busy, lambda: check_place(path, overwrite))
            folder = stack.enter_context(whole)
        except OSError as error:
            why = reason(error)
            raise SaePluginsError(f"--output_path {path} cannot be made: {why}") from error
        try:
            yield folder
            stack.close()
        except OSError as error:
            failure = SaePluginsError(
                f"the pages could not be written to {path}: {reason(error)}; nothing is left of "
                "them"
            )
            failure.exit_code = 1
            raise failure from error
