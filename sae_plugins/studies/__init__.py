"""The packaged studies: `sae-plugins study run NAME`."""

from __future__ import annotations

from pathlib import Path

from sae_plugins.base import yaml_files

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The packaged studies."""
    return yaml_files.names(FOLDER)
