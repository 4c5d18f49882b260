"""Where SAEs may lie; nothing is loaded to know."""

from __future__ import annotations

from pathlib import Path

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.names import file_name
from sae_plugins.base.nearby import meant


def name_of(source: str) -> str:
    """What an SAE is called, as its folder or in all words; a file may be called so."""
    folder = Path(source)
    return file_name(folder.resolve().name if folder.is_dir() else source)


def check_source(source: str) -> None:
    """Refuse what is neither a folder nor the name of an SAE elsewhere.

    Raises:
        SuiteError: it is a file, or nothing at all.
    """
    path = Path(source)
    if path.is_file():
        raise SuiteError(f"{source} is a file; name the folder {path.parent}")
    if not path.is_dir() and ":" not in source:
        cure = meant(path) or "name one, or give RELEASE:SAE_ID"
        raise SuiteError(f"{source} is no folder; {cure}")
