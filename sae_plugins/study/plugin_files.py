"""Plugins that the arms of a study try from files: where these are, and who may name them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.fingerprints import of_value
from sae_plugins.framework.plugin_files import FOLDER, copies, copy_of, hashes, load
from sae_plugins.framework.registry import names_file
from sae_plugins.runs.recipe_file import add_copies
from sae_plugins.study.spec import Study

_FLAG = "plugin"
_DIGITS = 8


def settle(layers: Sequence[dict[str, Any]], name_or_file: str) -> None:
    """Make the paths whole that a study file names, from its folder on.

    Args:
        layers: what the file says, then what those say that it extends.
        name_or_file: the study, as the user named it.

    Raises:
        SaePluginsError: a study that it extends names one.
    """
    for flags in (found for under in layers[1:] for found in _flags(under)):
        if named := [name for name in _names(flags) if names_file(name)]:
            raise SaePluginsError(
                f"study {name_or_file} extends one that names {' and '.join(named)}, and the code "
                "of a file runs only where the study file that you name says so: name it there, "
                "under the same keys"
            )
    folder = Path(name_or_file).expanduser().parent
    for flags in _flags(layers[0]):
        flags[_FLAG] = [
            _whole(name, folder) if names_file(name) else name for name in _names(flags)
        ]


def shared(study: Study) -> tuple[Study, dict[str, bytes]]:
    """A study as others may see it, and the code that belongs to it, by path in `FOLDER`.

    A file is named by a hash of what it says, and of what it imports beside it, and by its name:
    its copy lies there, below the folder of `as_run.yaml`.
    """
    files: dict[str, bytes] = {}

    def copied(name: str) -> str:
        selected = load(name)
        texts = copies([selected])
        place = of_value(hashes(texts))[:_DIGITS]
        files.update({f"{place}/{path}": text for path, text in texts.items()})
        return str(copy_of(selected)).replace(FOLDER, f"{FOLDER}/{place}", 1)

    return _with_files(study, copied), files


def kept(study: Study, folder: Path) -> tuple[Study, Study]:
    """Write the code that belongs to a study into its folder.

    Returns:
        The study as others may see it, and the one to run: all of its processes run these copies,
        whatever the files say by then.
    """
    told, files = shared(study)
    add_copies(folder, files)
    return told, _with_files(told, lambda name: _whole(name, folder))


def _with_files(study: Study, named: Callable[[str], str]) -> Study:
    tree = study.model_dump(mode="json", exclude_unset=True)
    for flags in _flags(tree):
        flags[_FLAG] = [named(name) if names_file(name) else name for name in _names(flags)]
    return Study.model_validate(tree)


def without_folder(name: str) -> str:
    """A plugin as a report names it: a file without the folders of this machine."""
    return name.rpartition("/")[2] if names_file(name) else name


def _whole(name: str, folder: Path) -> str:
    return os.path.abspath(folder / Path(name).expanduser())


def _flags(tree: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The mappings in a study that name plugins."""
    for value in tree.values():
        if isinstance(value, dict):
            if isinstance(value.get(_FLAG), (str, list)):
                yield value
            yield from _flags(value)


def _names(flags: Mapping[str, Any]) -> list[Any]:
    named = flags[_FLAG]
    names = named if isinstance(named, list) else [named]
    return [str(name) for name in names]
