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

from pathlib import Path
from typing import Any

from sae_plugins.base import yaml_files

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The packaged recipes."""
    return yaml_files.names(FOLDER)


def load(name_or_file: str) -> dict[str, Any]:
    """The recipe's keys and values, those of the recipes it extends included.

    Args:
        name_or_file: the name of a packaged recipe, or the path of a file that ends in .yaml.

    Raises:
        PluginError: there is none, or it is no recipe.
    """
    merged: dict[str, Any] = {}
    for layer in reversed(yaml_files.layers("recipe", name_or_file, FOLDER)):
        merged |= layer
    return merged
