"""What makes a run again: its `run.yaml`, and the code of plugins that are tried from files."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sae_plugins.base import yaml_files
from sae_plugins.base.files import remove_empty_folders, whole, write
from sae_plugins.base.secrets import line_with_secret
from sae_plugins.framework import plugin_files
from sae_plugins.framework.registry import names_file

logger = logging.getLogger(__name__)


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


def is_of(file: Path, recipe: Mapping[str, Any], files: Mapping[str, bytes]) -> bool:
    """Whether a recipe's file says what this one does, and has the same files beside it."""
    try:
        said, copies = file.read_text("utf-8"), _copies(file.parent)
        return said == as_yaml(recipe) and {n: p.read_bytes() for n, p in copies.items()} == files
    except (OSError, ValueError):
        return False


def note_early_end(file: Path) -> None:
    """Have a recipe, if it can be written, say that its run ended early; `is_of` then is false."""
    with suppress(OSError, ValueError):
        write(file, f"{file.read_text('utf-8')}# This run ended early.\n")


def write_recipe(file: Path, recipe: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a recipe, and beside it the files that it names, by their paths among the copies."""
    write_copies(file.parent, files)
    write(file, as_yaml(recipe))


def write_copies(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the code of plugins that are files into a run's folder, in place of earlier code."""
    add_copies(folder, files)
    for name, path in _copies(folder).items():
        if name not in files:
            path.unlink()
    remove_empty_folders(folder / plugin_files.FOLDER)


def add_copies(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write code into a folder, beside what is there."""
    for name, text in files.items():
        _warn_of_secret(name, text)
        place = folder / plugin_files.FOLDER / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place) as partial:
            partial.write_bytes(text)


@cache
def _warn_of_secret(name: str, text: bytes) -> None:
    """Once in a process: a study has many copies."""
    if line := line_with_secret(text.decode("utf-8", "replace")):
        logger.warning(
            "%s, line %d, seems to hold a secret, and is copied as it is: `upload` refuses to send "
            "it; read secrets from the environment",
            name,
            line,
        )


def _copies(folder: Path) -> dict[str, Path]:
    """The code that is in a run's folder, by path among the copies."""
    place = folder / plugin_files.FOLDER
    return {path.relative_to(place).as_posix(): path for path in place.rglob("*.py")}
