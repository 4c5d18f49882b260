"""Plugins and methods by name, through the entry-point group `sae_plugins`.

Built-ins come in by the same door as strangers. Only what the user names is imported, so a broken
third-party package harms nobody who did not name it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sae_plugins.plugin import Method, Plugin, PluginError, did_you_mean

GROUP = "sae_plugins"


@dataclass(frozen=True)
class Installed:
    """An entry point: where `name` is defined, and which distribution brings it."""

    name: str
    target: str
    distribution: str
    version: str


def installed() -> dict[str, list[Installed]]:
    """Everything that is installed, by name; nothing is imported."""
    return _installed(tuple(sys.path))


@cache
def _installed(path: tuple[str, ...]) -> dict[str, list[Installed]]:
    found: dict[str, list[Installed]] = {}
    about = cache(lambda dist: (dist.name, dist.version))  # which read its whole metadata
    for point in entry_points(group=GROUP):
        distribution, version = about(point.dist) if point.dist else ("?", "?")
        entry = Installed(point.name, point.value, distribution, version)
        if entry not in found.setdefault(point.name, []):  # sys.path may list a folder twice
            found[point.name].append(entry)
    return dict(sorted(found.items()))


def load(name: str) -> type[Plugin] | type[Method]:
    """Import the plugin or method called `name`.

    Raises:
        PluginError: no such name (with suggestions), two distributions bring it, its module does
            not import, or what it names is no plugin.
    """
    if name not in installed():
        _installed.cache_clear()  # it may have been installed meanwhile, as notebooks do
    entries = installed()
    if name not in entries:
        raise PluginError(
            f"no plugin {name!r} is installed: {did_you_mean(name, entries)} "
            "(`sae-plugins plugins list` shows all)"
        )
    if len(entries[name]) > 1:
        owners = " and ".join(f"{entry.distribution} ({entry.target})" for entry in entries[name])
        raise PluginError(f"two distributions bring a plugin {name!r}: {owners}; uninstall one")
    entry = entries[name][0]
    try:
        loaded = EntryPoint(entry.name, entry.target, GROUP).load()
    except Exception as error:
        raise PluginError(
            f"plugin {name!r} of {entry.distribution} {entry.version} cannot be imported from "
            f"{entry.target}: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, (Plugin, Method))):
        raise PluginError(
            f"{entry.target} of {entry.distribution} is {loaded!r}: it must be a subclass of "
            "sae_plugins.Plugin or sae_plugins.Method (the class itself, not an instance)"
        )
    if loaded.name != name:
        raise PluginError(
            f"{entry.target} of {entry.distribution} is called {loaded.name!r}, but its entry "
            f"point is called {name!r}: make them equal"
        )
    return loaded


@dataclass(frozen=True)
class Listing:
    """One line of `sae-plugins plugins list`."""

    name: str
    kind: str
    summary: str
    distribution: str
    version: str


def listing() -> Iterator[Listing]:
    """What is installed, with the first sentence of each docstring, read without importing."""
    for entries in installed().values():
        for entry in entries:
            node = _class_definition(entry.target)
            summary = (ast.get_docstring(node) or "").split("\n")[0] if node else ""
            bases = [ast.unparse(base) for base in node.bases] if node else []
            kind = "method" if any(base.endswith("Method") for base in bases) else "mechanism"
            yield Listing(entry.name, kind, summary, entry.distribution, entry.version)


def _class_definition(target: str) -> ast.ClassDef | None:
    module, _, attribute = target.partition(":")
    source = _source_file(module)
    if source is None:
        return None
    try:
        tree = ast.parse(source.read_text("utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    definitions = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return next((node for node in definitions if node.name == attribute.strip()), None)


def _source_file(module: str) -> Path | None:
    """The file of a module, found as import would find it, but without running its parents."""
    path: list[str] | None = None
    spec = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
        specs = (finder.find_spec(name, path) for finder in finders)
        spec = next((found for found in specs if found is not None), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None
