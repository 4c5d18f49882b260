"""A checkpoint as several ranks write it: a file per data shard, and the main one last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import Ranks
from sae_plugins.resume.files import shard_of
from sae_plugins.resume.state import read_state, write_state

Tree = Mapping[str, Any]
_PLUGIN = re.compile(r"trainers/\d+/(?:running/.*?/trainer/)?plugins/([^/]+)/(.*)")
"""The place of a plugin's attribute, also where the trainer is one of several in lockstep."""


def write_together(
    path: Path, tree: Callable[[], tuple[Tree, Mapping[str, Tree]]], ranks: Ranks
) -> str | None:
    """Write what `tree` gives: it comes last, and makes those of the shards a checkpoint.

    Args:
        path: of the main file.
        tree: gives what rank 0 writes, and the states of each rank's shards by number.
        ranks: who write.

    Returns:
        Why there is no checkpoint; None where there is one.
    """
    main: Tree = {}
    written: list[Path] = []

    def shards() -> None:
        nonlocal main
        main, parts = tree()
        for k, state in parts.items():
            write_state(shard_of(path, k), state)
            written.append(shard_of(path, k))

    def last() -> None:
        if ranks.writes:
            write_state(path, main)

    for write in (shards, last):
        # disks are slow, and rank 0 writes most
        found = ranks.all(_failure(write), patiently=True)
        failures = [failure for failure in found if failure is not None]
        reason: str | None = next(iter(failures), None)
        if reason is not None:
            for file in () if path.exists() else written:  # else a checkpoint has them
                with suppress(OSError):
                    file.unlink()
            return reason
    return None


def _failure(act: Callable[[], None]) -> str | None:
    """Why something could not be done; None where it is done."""
    try:
        with savable():
            act()
    except (OSError, PluginError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None


def read_shards(path: Path, numbers: Iterable[int]) -> dict[str, Any]:
    """The states of some of a checkpoint's data shards, by number.

    Raises:
        StateError: one is missing or damaged.
    """
    return {str(k): read_state(shard_of(path, k)) for k in numbers}


@contextmanager
def savable() -> Iterator[None]:
    """Name the plugin and the attribute that cannot be saved, and what to do about it."""
    try:
        yield
    except TypeError as error:
        plugin = _PLUGIN.fullmatch(str(error))
        what = f"plugin {plugin[1]!r}: self.{plugin[2]}" if plugin else str(error)
        raise PluginError(
            f"no checkpoint can be made of {what}: keep numbers, strings, tensors and containers "
            "of them there, or, on a plugin, name the attribute in `transient` or override "
            "state_dict and load_state_dict"
        ) from error
