"""YAML that can be trusted, and files of it by name or path, which may extend others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import PluginError, did_you_mean, nearest, prefixed
from sae_plugins.base.files import not_too_deep
from sae_plugins.base.nearby import meant
from sae_plugins.base.secrets import redacted

if TYPE_CHECKING:
    from yaml import Node

_MOST_ANCESTORS = 20
_MOST_VALUES = 100_000
"""Aliases (`*name`) can make gigabytes of a few lines."""


def parse(text: str) -> Any:
    """The value of a YAML document, with SafeLoader's types.

    Raises:
        YAMLError: it is no YAML, a key stands twice in one mapping (YAML itself keeps the last
            value, without a word), or its aliases make too much of it.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        loader.dispose()


def _count(node: Node, known: dict[int, int]) -> int:
    """The values in a node, aliases written out; refuses what `parse` does not take."""
    import yaml

    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.MarkedYAMLError(None, None, "a value contains itself", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    values = 1
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    said = f"the key {key.value!r} stands twice"
                    raise yaml.MarkedYAMLError(None, None, said, key.start_mark)
                keys.add((key.tag, key.value))
            values += _count(key, known) + _count(value, known)
    elif isinstance(node, yaml.SequenceNode):
        values += sum(_count(item, known) for item in node.value)
    if values > _MOST_VALUES:
        said = f"aliases make more than {_MOST_VALUES:,} values of it"
        raise yaml.MarkedYAMLError(None, None, said, node.start_mark)
    known[id(node)] = values
    return values


def names(folder: Path) -> list[str]:
    """The files in a folder, without their ending."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def layers(kind: str, name_or_file: str, folder: Path) -> list[dict[str, Any]]:
    """The contents of a file, then of the one that it extends, and so on.

    Args:
        kind: what such a file is called, "recipe" or "study".
        name_or_file: the name of a file in `folder`, or the path of one that ends in .yaml.
        folder: of those that come with the package.

    Raises:
        PluginError: there is none, it is no mapping, or it extends itself.
    """
    path = _find(kind, name_or_file, folder, Path.cwd())
    found = [_read(kind, path)]
    while "extends" in found[-1]:
        under = str(found[-1].pop("extends"))
        if len(found) > _MOST_ANCESTORS:
            raise PluginError(f"{kind} {path} extends itself, through {under!r}")
        with prefixed(f"{kind} {path} extends {under}"):
            path = _find(kind, under, folder, path.parent)
        found.append(_read(kind, path))
    return found


def dump(tree: Mapping[str, Any], width: int | None = None) -> str:
    """The text of a YAML file, without secrets."""
    import yaml

    shown = redacted(tree)
    return str(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=width or 80))


def _find(kind: str, name_or_file: str, packaged: Path, folder: Path) -> Path:
    """A file below `folder` or anywhere, if it looks like one; else a packaged one."""
    known = names(packaged)
    if name_or_file.endswith((".yaml", ".yml")):
        path = folder / Path(name_or_file).expanduser()
        if not path.is_file():
            near = nearest(path.stem, known)
            cure = did_you_mean(path.stem, known) if near else meant(path, is_folder=False)
            cure = f": {cure}" if cure else ""
            raise PluginError(f"there is no {kind} file {name_or_file}{cure}")
        return path
    if not re.fullmatch(r"[\w-]+", name_or_file) or name_or_file not in known:
        raise PluginError(
            f"there is no {kind} {name_or_file!r}: {did_you_mean(name_or_file, known)} "
            f"(a {kind} of your own is a file that ends in .yaml)"
        )
    return packaged / f"{name_or_file}.yaml"


def _read(kind: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        contents = not_too_deep(lambda: parse(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"{kind} {path} cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # of dates and numbers, too
        raise PluginError(f"{kind} {path} is not YAML: {error}") from error
    if not isinstance(contents, dict) or not all(isinstance(key, str) for key in contents):
        raise PluginError(f"{kind} {path} must be a mapping of names to values")
    return contents
