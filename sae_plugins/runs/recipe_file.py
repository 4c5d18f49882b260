"""What makes a run again: its `run.yaml`, and the code of plugins that are tried from files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_plugins.base import yaml_files
from sae_plugins.base.files import whole, write
from sae_plugins.framework import plugin_files
from sae_plugins.framework.registry import names_file


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as the text of `run.yaml`."""
    heading = "# Reproduces this run: sae-plugins train --recipe THIS_FILE --output_path ANOTHER\n"
    return heading + yaml_files.dump(recipe)


def named_again(file: Path, names: Sequence[str] | None = None) -> str:
    """What a command that uses a recipe must say again: ` --plugin ...`, or nothing.

    Args:
        file: the recipe, in whose folder plugins are that are files.
        names: its plugins; read from it, if it is there, by default.
    """
    names = _plugins_of(file) if names is None else names
    if not any(map(names_file, names)):
        return ""
    again = (str(file.parent / name) if names_file(name) else name for name in names)
    return f" --plugin {shlex.join(again)}"


def _plugins_of(file: Path) -> list[str]:
    try:
        contents = yaml_files.parse(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [*contents.get("plugin", [])] if isinstance(contents, dict) else []


def write_recipe(file: Path, recipe: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a recipe, and beside it the files that it names, by their paths among the copies."""
    for name, text in files.items():
        place = file.parent / plugin_files.FOLDER / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place) as partial:
            partial.write_bytes(text)
    write(file, as_yaml(recipe))
