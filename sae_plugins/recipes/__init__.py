"""Recipes: the flags of a whole run, in YAML.

A recipe's keys are the names of `sae-plugins train`'s flags, a plugin's options included::

    description: What it is for.
    extends: hybrid-order-demo      # another recipe, which this one overrides
    plugin: [hybrid-order]
    reorder.interval: 250
    training_tokens: 2_000_000

The `run.yaml` of a run's folder is one too. The files beside this one are recipes by name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae_plugins.plugin import PluginError, did_you_mean

FOLDER = Path(__file__).parent
_MOST_ANCESTORS = 20


def names() -> list[str]:
    """The packaged recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name_or_file: str) -> dict[str, Any]:
    """The recipe's keys and values, those of the recipes it extends included.

    Args:
        name_or_file: the name of a packaged recipe, or the path of a file that ends in .yaml.

    Raises:
        PluginError: there is none, or it is no recipe.
    """
    path = _find(name_or_file, Path.cwd())
    layers = [_read(path)]
    while "extends" in layers[-1]:
        if len(layers) > _MOST_ANCESTORS:
            raise PluginError(f"recipe {path} extends itself, through {layers[-1]['extends']!r}")
        path = _find(str(layers[-1]["extends"]), path.parent)
        layers.append(_read(path))
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged |= layer
    merged.pop("extends", None)
    return merged


def _find(name_or_file: str, folder: Path) -> Path:
    """A file below `folder` or anywhere, if it looks like one; else a packaged recipe."""
    if name_or_file.endswith((".yaml", ".yml")):
        path = folder / Path(name_or_file).expanduser()
        if not path.is_file():
            raise PluginError(f"there is no recipe file {name_or_file}")
        return path
    if not re.fullmatch(r"[\w-]+", name_or_file) or name_or_file not in names():
        raise PluginError(
            f"there is no recipe {name_or_file!r}: {did_you_mean(name_or_file, names())} "
            "(a recipe of your own is a file that ends in .yaml)"
        )
    return FOLDER / f"{name_or_file}.yaml"


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        contents = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"recipe {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise PluginError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(contents, dict) or not all(isinstance(key, str) for key in contents):
        raise PluginError(f"recipe {path} must be a mapping of flag names to values")
    return contents
