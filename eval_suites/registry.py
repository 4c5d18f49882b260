"""Evaluation suites by name, through the entry-point group `sae_plugins.eval_suites`.

Only the suites that the user names are imported, so a broken one harms nobody else.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from sae_plugins.plugin import did_you_mean
from sae_plugins.registry import Installed, _class_definition

if TYPE_CHECKING:
    from sae_plugins.eval_suites.suite import Suite

GROUP = "sae_plugins.eval_suites"


class RegistryError(Exception):
    """A suite is not installed, or what is installed is no suite; the message says which."""


@cache
def installed() -> dict[str, Installed]:
    """Every installed suite by name; nothing is imported. The first of two namesakes counts."""
    found: dict[str, Installed] = {}
    for point in entry_points(group=GROUP):
        owner, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
        found.setdefault(point.name, Installed(point.name, point.value, owner, version))
    return dict(sorted(found.items()))


def built_in() -> list[str]:
    """The names of the suites that come with this package."""
    return [name for name, entry in installed().items() if entry.distribution == "sae-plugins"]


def summaries() -> dict[str, str]:
    """The first sentence of each suite's docstring by name, read without importing."""
    nodes = {name: _class_definition(entry.target) for name, entry in installed().items()}
    return {
        name: (ast.get_docstring(node) or "").split("\n")[0] if node else ""
        for name, node in nodes.items()
    }


def check(name: str) -> None:
    """Refuse a name that no suite has; nothing is imported.

    Raises:
        RegistryError: it suggests near names.
    """
    if name not in installed():
        raise RegistryError(
            f"no suite {name!r} is installed: {did_you_mean(name, installed())} "
            "(`sae-plugins evaluate --help` shows all)"
        )


def load(name: str) -> Suite:
    """Import the suite called `name`.

    Raises:
        RegistryError: no such name, its module does not import, or what it names is no suite.
    """
    from sae_plugins.eval_suites.suite import Suite

    check(name)
    entry = installed()[name]
    whose = f"the suite {name!r} of {entry.distribution} {entry.version}"
    try:
        loaded = EntryPoint(entry.name, entry.target, GROUP).load()
    except Exception as error:
        raise RegistryError(
            f"{whose} cannot be imported from {entry.target}: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Suite)):
        raise RegistryError(f"{whose} is {loaded!r}: it must be a subclass of {Suite.__name__}")
    if loaded.__dict__.get("name", loaded.name) != name:
        raise RegistryError(
            f"{whose} calls itself {loaded.name!r}: name its entry point so, or the other way round"
        )
    return loaded()
