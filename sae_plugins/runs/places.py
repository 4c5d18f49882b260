"""What flags name on this machine must be there; nothing slow is needed to see that it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import PluginError, Problems
from sae_plugins.base.nearby import meant, not_there
from sae_plugins.runs.sources import is_path
from sae_plugins.runs.texts.found import how_to_load

_FOLDERS = ("resume_from_checkpoint", "from_pretrained_path", "cached_activations_path")
"""Flags that name a folder to read."""


def check_places(values: Mapping[str, Any]) -> None:
    """Refuse files and folders that are not there, or are none that can be read.

    Args:
        values: by flag, of those that a run uses.

    Raises:
        PluginError: a sentence for each.
    """
    problems = Problems()
    model, cached = str(values.get("model_name") or ""), values.get("use_cached_activations")
    if (is_path(model) or len(Path(model).parts) > 2) and not Path(model).expanduser().exists():
        problems.add(f"--model_name {model}{not_there(Path(model).expanduser())}")
    for name in _FOLDERS:
        folder = values.get(name)
        is_elsewhere = name == "from_pretrained_path" and ":" in str(folder)
        is_unused = name == "cached_activations_path" and not cached
        if folder and not is_elsewhere and not is_unused and not Path(folder).is_dir():
            cure = meant(Path(folder)) or "name another, or leave it out"
            problems.add(f"--{name} {folder} is no folder; {cure}")
    if values.get("dataset_path") and not cached:
        with problems:
            how_to_load(values)
    problems.stop(PluginError)
