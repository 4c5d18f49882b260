"""What makes a run again: its `run.yaml`, and the code of plugins that are tried from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_plugins.base import yaml_files
from sae_plugins.base.files import whole, write
from sae_plugins.framework import plugin_files


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as the text of `run.yaml`."""
    heading = "# Reproduces this run: sae-plugins train --recipe THIS_FILE --output_path ANOTHER\n"
    return heading + yaml_files.dump(recipe)


def write_recipe(file: Path, recipe: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a recipe, and beside it the files that it names, by their paths among the copies."""
    for name, text in files.items():
        place = file.parent / plugin_files.FOLDER / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place) as partial:
            partial.write_bytes(text)
    write(file, as_yaml(recipe))
