"""Paths among the settings, made whole, so that a run finds them from any working folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_plugins.runs.sources import is_path

_ALWAYS = ("cached_activations_path", "checkpoint_path", "resume_from_checkpoint")
"""Flags whose values are paths, whether or not anything is there."""
_OR_ON_THE_HUB = {"model_name": "config.json", "dataset_path": "", "from_pretrained_path": ""}
"""Flags whose values are names on the Hub unless a file or a folder is there, and what it has."""
_ARGUMENTS = {"model_from_pretrained_kwargs": ("cache_dir",)}
"""Paths in the mappings that are values of flags."""


def placed(values: Mapping[str, Any], notes: list[str] | None = None) -> dict[str, Any]:
    """Values by flag, with all that are paths whole.

    Args:
        values: of any flags.
        notes: hears what was taken where a value may also be a name on the Hub.
    """
    found = dict(values)
    for name in _ALWAYS:
        if found.get(name):
            found[name] = whole(found[name])
    for name, needed in _OR_ON_THE_HUB.items():
        source = found.get(name)
        if not source or not isinstance(source, str):
            continue
        if (is_path(source) and not needed) or _exists(source, needed):
            found[name] = whole(source)
            if notes is not None and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
                notes.append(f"--{name} {source} is {found[name]}, not {source} of the Hub")
    for name, keys in _ARGUMENTS.items():
        arguments = found.get(name)
        if isinstance(arguments, Mapping):
            paths = {key: whole(arguments[key]) for key in keys if arguments.get(key)}
            found[name] = {**arguments, **paths}
    return found


def whole(path: str) -> str:
    """A path from the root on; `~` is the home folder, and links stay as they are."""
    with suppress(RuntimeError):  # no user's home
        path = str(Path(path).expanduser())
    return os.path.abspath(path)


def _exists(source: str, needed: str) -> bool:
    try:
        return Path(source).expanduser().joinpath(needed).exists()
    except (OSError, RuntimeError):  # a name that no file can have, or no user's home
        return False
