"""Plugins and methods by name, through the entry-point group `sae_plugins`.

Built-ins come in by the same door as strangers. Only what the user names is imported, so a broken
third-party package harms nobody who did not name it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from sae_plugins.framework.plugin import Method, Plugin

GROUP = "sae_plugins"


@dataclass(frozen=True)
class Installed:
    """An entry point: where `name` is defined, and which distribution brings it."""

    name: str
    target: str
    distribution: str
    version: str


def installed(group: str = GROUP) -> dict[str, list[Installed]]:
    """Everything that is installed in a group, by name; nothing is imported."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> dict[str, list[Installed]]:
    found: dict[str, list[Installed]] = {}
    about = cache(lambda dist: (dist.name, dist.version))  # which read its whole metadata
    for point in entry_points(group=group):
        distribution, version = about(point.dist) if point.dist else ("?", "?")
        entry = Installed(point.name, point.value, distribution, version)
        if entry not in found.setdefault(point.name, []):  # sys.path may list a folder twice
            found[point.name].append(entry)
    return dict(sorted(found.items()))


def names_file(name: str) -> bool:
    """Whether what a user gives in place of a plugin's name is FILE.py:CLASS, or FILE.py."""
    return re.search(r"\.py(:[^/]*)?$", name) is not None


def find(name: str, group: str, what: str, where: str) -> Installed:
    """The entry point called `name`; nothing is imported.

    Args:
        name: as the user gave it.
        group: of entry points.
        what: a word for what is in this group.
        where: the command that shows all.

    Raises:
        PluginError: no such name (with suggestions), or two distributions bring it.
    """
    if name not in installed(group):
        _installed.cache_clear()  # it may have been installed meanwhile, as notebooks do
    entries = installed(group)
    if name not in entries and "," in name:
        raise PluginError(
            f"no {what} {name!r} is installed: separate several names by blanks, not by commas"
        )
    if name not in entries:
        raise PluginError(
            f"no {what} {name!r} is installed: {did_you_mean(name, entries)} (`{where}` shows all)"
        )
    if len(entries[name]) > 1:
        owners = " and ".join(f"{entry.distribution} ({entry.target})" for entry in entries[name])
        raise PluginError(f"two distributions bring a {what} {name!r}: {owners}; uninstall one")
    return entries[name][0]


def import_class(entry: Installed, what: str, bases: Sequence[type]) -> type[Any]:
    """Import what an entry point names.

    Raises:
        PluginError: its module does not import, or what it names is no subclass of `bases`, or is
            called otherwise.
    """
    try:
        loaded = EntryPoint(entry.name, entry.target, "").load()
    except Exception as error:
        raise PluginError(
            f"{what} {entry.name!r} of {entry.distribution} {entry.version} cannot be imported "
            f"from {entry.target}: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, tuple(bases))):
        names = " or ".join(_public_name(base) for base in bases)
        raise PluginError(
            f"{entry.target} of {entry.distribution} is {loaded!r}: it must be a subclass of "
            f"{names} (the class itself, not an instance)"
        )
    if loaded.name != entry.name:  # type: ignore[attr-defined]
        raise PluginError(
            f"{entry.target} of {entry.distribution} is called {loaded.name!r}, but its entry "  # type: ignore[attr-defined]
            f"point is called {entry.name!r}: make them equal"
        )
    return loaded


def _public_name(base: type) -> str:
    module = base.__module__.removesuffix(".framework.plugin")  # whose classes `sae_plugins` shows
    return f"{module}.{base.__name__}"


def load(name: str) -> type[Plugin] | type[Method]:
    """Import the plugin or method called `name`.

    Raises:
        PluginError: there is none, or it is broken: see `find` and `import_class`.
    """
    from sae_plugins.framework.plugin import Method, Plugin  # which import pydantic

    if names_file(name):
        raise PluginError(
            f"{name!r} names a file, whose code runs only where a command line or a study file "
            "names it with --plugin, or `plugin`; in Python, import the class and give that"
        )
    if re.search(r"[:/]", name):
        raise PluginError(
            f"no plugin {name!r} is installed: a class of your own is named as FILE.py:CLASS"
        )
    entry = find(name, GROUP, "plugin", "sae-plugins plugins list")
    return import_class(entry, "plugin", (Plugin, Method))


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
            node = _class_definition(entry.target)[0]
            bases = [ast.unparse(base) for base in node.bases] if node else []
            kind = "method" if any(base.endswith("Method") for base in bases) else "mechanism"
            yield Listing(entry.name, kind, summary(entry), entry.distribution, entry.version)


def options(group: str = GROUP, attribute: str = "Options") -> dict[str, list[str]]:
    """The fields of each class's model called `attribute`, by entry point; read without importing.

    A class that inherits its model, or makes it, has none here.
    """
    return {name: _fields(entries[0], attribute) for name, entries in installed(group).items()}


def _fields(entry: Installed, attribute: str) -> list[str]:
    node, classes = _class_definition(entry.target)
    model: ast.ClassDef | None = None
    for each in node.body if node else []:
        if isinstance(each, ast.ClassDef) and each.name == attribute:
            model = each
        elif isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == attribute:
            model = classes.get(ast.unparse(each.value))
    fields = (each for each in (model.body if model else []) if isinstance(each, ast.AnnAssign))
    return [ast.unparse(each.target) for each in fields]


def summary(entry: Installed) -> str:
    """The first line of the docstring of what an entry point names, read without importing."""
    node, _ = _class_definition(entry.target)
    return (ast.get_docstring(node) or "").split("\n")[0] if node else ""


_found: dict[tuple[str, ...], Path] = {}
"""Files of modules, by the module and where Python looks; a study asks for all with every SAE."""


def _class_definition(target: str) -> tuple[ast.ClassDef | None, dict[str, ast.ClassDef]]:
    """The class that an entry point names, and all classes of its module, by name."""
    module, _, attribute = target.partition(":")
    place = (module, *sys.path)
    source = _found.get(place) or _source_file(module)
    if source is not None:
        _found[place] = source
    try:
        classes = {} if source is None else _classes(source, source.stat().st_mtime_ns)
    except (OSError, SyntaxError, UnicodeDecodeError):
        classes = {}
    return classes.get(attribute.strip()), classes


@cache
def _classes(source: Path, mtime_ns: int) -> dict[str, ast.ClassDef]:
    """The classes of a file by name."""
    tree = ast.parse(source.read_text("utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


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
