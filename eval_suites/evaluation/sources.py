"""Where SAEs may lie; nothing is loaded to know."""

from __future__ import annotations

from pathlib import Path

from sae_plugins.base.errors import SuiteError


def check_source(source: str) -> None:
    """Refuse what is neither a folder nor the name of an SAE elsewhere.

    Raises:
        SuiteError: it is a file, or nothing at all.
    """
    path = Path(source)
    if path.is_file():
        raise SuiteError(f"{source} is a file; name the folder {path.parent}")
    if not path.is_dir() and ":" not in source:
        raise SuiteError(f"{source} is no folder; name one, or give RELEASE:SAE_ID")
