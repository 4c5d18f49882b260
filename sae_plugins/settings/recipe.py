"""Recipes, read and converted: flags from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import Problems, SaePluginsError, nearest, prefixed
from sae_plugins.resume.origin import ACCEPTED
from sae_plugins.settings.flags import REFUSED, all_flags
from sae_plugins.settings.suggestions import unknown_flag
from sae_plugins.settings.values import convert

ABOUT = ("description", "versions", ACCEPTED)
"""What a recipe says besides flags."""
_ON_THE_LINE = ("recipe", "overwrite", "resume", "accept_changes", "dry_run", "profile")


def read_recipe(flags: Mapping[str, Any], problems: Problems) -> tuple[dict[str, Any], list[str]]:
    """The values by flag of the recipe that flags name, none without one, and what to note of it.

    Args:
        flags: values by flag.
        problems: hears of a recipe that there is not, of keys that are no flags, and of values that
            do not fit. A recipe whose name is misspelt is read as what was probably meant.
    """
    if "recipe" not in flags:
        return {}, []
    from sae_plugins import recipes

    name, contents = str(flags["recipe"]), None
    with problems:
        contents = recipes.load(name)
    if contents is None:
        near = nearest(name, recipes.names())
        contents = recipes.load(near[0]) if near else {}
    found: dict[str, Any] = {}
    notes: list[str] = []
    own = Problems()
    for key, value in contents.items():
        if key in _ON_THE_LINE:
            own.add(f"{key!r} belongs on the command line, not in a recipe")
        elif key in REFUSED:
            notes.append(f"the recipe's {key} is left out: {REFUSED[key]}")
        elif key not in ABOUT:
            with own:
                found |= converted({key: value})
    if "resume" not in flags:  # of a resumed run, the checkpoint knows the versions
        with own:
            notes += _version_notes(name, contents.get("versions", {}), found)
        notes += _change_notes(name, contents.get(ACCEPTED))
    with problems, prefixed(f"recipe {name}"):
        own.stop()
    if "plugin" not in flags:
        _refuse_files(name, found.get("plugin", []), problems)
    return found, notes


def _refuse_files(recipe: str, names: list[str], problems: Problems) -> None:
    """Refuse to run code that only a recipe names; nothing else of the recipe can be checked then.

    Raises:
        SaePluginsError: it names a file, and all else that is wrong.
    """
    from sae_plugins.framework.registry import names_file
    from sae_plugins.runs.recipe_file import named_again

    files = [name for name in names if names_file(name)]
    if not files:
        return
    again = named_again(Path(recipe), names).strip()
    problems.add(
        f"recipe {recipe} names {' and '.join(files)}, and no recipe makes the code of a file run: "
        f"look at it, and name it yourself: {again}"
    )
    problems.stop()


def _change_notes(recipe: str, accepted: Any) -> list[str]:
    """In which way the run of a recipe cannot be made again."""
    if not accepted:
        return []
    return [
        f"the run of {recipe} went on after something that it was made from had changed, as its "
        f"{ACCEPTED} say; this one is made from what is there now, all the way"
    ]


def _version_notes(recipe: str, versions: Any, values: Mapping[str, Any]) -> list[str]:
    """What has changed since a recipe was made.

    Raises:
        SaePluginsError: a package is not installed any more, and a plugin neither.
    """
    from sae_plugins.base.files import versions as installed
    from sae_plugins.framework import registry

    if not isinstance(versions, dict) or not all(isinstance(name, str) for name in versions):
        raise SaePluginsError("'versions' must be a mapping of names to versions")
    now = installed(versions)
    named = [name for name in values.get("plugin", []) if not registry.names_file(name)]
    unknown = [name for name in named if name not in registry.installed()]
    absent = [f"{n} {v}" for n, v in versions.items() if n not in now]
    if unknown and absent:
        raise SaePluginsError(
            f"no plugin {unknown[0]!r} is installed; the run was made with "
            f"{' and '.join(absent)}, which is missing here"
        )
    changed = [f"{n} {v} (now {now.get(n)})" for n, v in versions.items() if now.get(n) != str(v)]
    if not changed:
        return []
    return [f"{recipe} was made with other versions, so the run may differ: {', '.join(changed)}"]


def converted(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the flags of their names have them.

    Raises:
        SaePluginsError: there are no such flags, or values do not fit; a sentence for each.
    """
    problems, found = Problems(), {}
    for name, value in contents.items():
        with problems:
            found[name] = _converted(name, value)
    problems.stop()
    return found


def _converted(name: str, value: Any) -> Any:
    if "." in name:
        return value
    flag = all_flags().get(name)
    if flag is None:
        raise SaePluginsError(unknown_flag(name, all_flags()))
    if flag.type == "list[str]":
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return convert(flag, value)
