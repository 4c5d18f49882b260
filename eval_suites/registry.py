"""Evaluation suites by name, through the entry-point group `sae_plugins.eval_suites`.

Only the suites that the user names are imported, so a broken one harms nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_plugins.framework import registry
from sae_plugins.framework.registry import Installed

if TYPE_CHECKING:
    from sae_plugins.eval_suites.suite import Suite

GROUP = "sae_plugins.eval_suites"


def names() -> list[str]:
    """The names of all installed suites."""
    return list(registry.installed(GROUP))


def built_in() -> list[str]:
    """The names of the suites that come with this package."""
    return [
        name
        for name, entries in registry.installed(GROUP).items()
        if any(entry.distribution == "sae-plugins" for entry in entries)
    ]


def options() -> dict[str, list[str]]:
    """The names of each suite's settings by suite, read without importing."""
    return registry.options(GROUP, "Settings")


def summaries() -> dict[str, str]:
    """The first line of each suite's docstring by name, read without importing."""
    found = registry.installed(GROUP)
    return {name: registry.summary(entries[0]) for name, entries in found.items()}


def find(name: str) -> Installed:
    """The entry point of a suite; nothing is imported.

    Raises:
        PluginError: there is none, or there are two.
    """
    return registry.find(name, GROUP, "suite", "sae-plugins evaluate --help")


def load(name: str) -> Suite:
    """Import the suite called `name`.

    Raises:
        PluginError: there is none, or it is broken.
    """
    from sae_plugins.eval_suites.suite import Suite

    suite: Suite = registry.import_class(find(name), "suite", (Suite,))()
    return suite


def check_installed(suite: Suite) -> None:
    """Refuse to run a suite without what it calls.

    Raises:
        PluginError: it needs SAEBench, which is not installed.
    """
    from sae_plugins.eval_suites.saebench.installed import check

    if suite.needs_saebench:
        check(f"suite {suite.name}")
