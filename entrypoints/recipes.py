"""`sae-plugins recipes list` and `sae-plugins recipes show NAME`."""

from __future__ import annotations

from sae_plugins.base.errors import Problems
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.terminal import table
from sae_plugins.settings.command_line import Line


def _list(_: Line, problems: Problems) -> int:
    problems.stop()
    from sae_plugins import recipes

    print(table({name: recipes.load(name)["description"] for name in recipes.names()}))
    return 0


def _show(line: Line, problems: Problems) -> int:
    problems.stop()
    from sae_plugins import recipes
    from sae_plugins.base import yaml_files

    print(yaml_files.dump(recipes.load(line.operands[0]), 96), end="")
    return 0


COMMAND = Command(
    "recipes",
    "list or show recipes",
    _list,
    actions=(
        Command("recipes list", "the packaged recipes, and what they are for", _list),
        Command(
            "recipes show",
            "a recipe as YAML, with those that it extends, to change in a file of your own",
            _show,
            "RECIPE",
        ),
    ),
)
