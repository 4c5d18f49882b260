"""What a path that is not there may be a misspelling of."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sae_plugins.base.errors import nearest


def meant(path: Path, *, is_folder: bool = True) -> str | None:
    """A question that names folders, or files, which a path may be a misspelling of.

    Args:
        path: nothing is there.
        is_folder: whether a folder is wanted, and not a file or a folder.

    Returns:
        None if nothing is near.
    """
    near: list[Path] = []
    with suppress(OSError):  # of folders that cannot be read, and of names that no file can have
        near = [each for each in _near(path) if each.is_dir() or not is_folder]
    return f"did you mean {' or '.join(repr(str(each)) for each in near)}?" if near else None


def not_there(path: Path, *, is_folder: bool = True) -> str:
    """What to say after a path at which nothing is; see `meant`."""
    what, cure = "folder" if is_folder else "file or folder", meant(path, is_folder=is_folder)
    return f": there is no such {what}{f'; {cure}' if cure else ''}"


def _near(path: Path) -> list[Path]:
    """Paths that are there, as near as any; each part may be misspelt."""
    if path.exists() or path == path.parent:
        return [path]
    return [
        parent / name
        for parent in _near(path.parent)
        if parent.is_dir()
        for name in nearest(path.name, (each.name for each in parent.iterdir() if each.exists()))
    ]
