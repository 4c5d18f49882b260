"""Where a run's data and language model come from, and their commits on the Hub; nothing slow.

A commit is looked up once, when a run or a study begins. From then on it is a setting like any
other: `run.yaml` has it, so that whoever goes on or starts again reads the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_plugins import world
from sae_plugins.base.code import SYNTHETIC_MODELS, WORLD
from sae_plugins.base.errors import PluginError
from sae_plugins.base.hub import commit_of, is_commit
from sae_plugins.base.identity import Fact, of_code, of_path, of_repository
from sae_plugins.world.synthetic_models import SYNTHETIC

logger = logging.getLogger(__name__)

REVISIONS = {"dataset_revision": "dataset_path", "model_revision": "model_name"}
"""Flags that name a revision, and those that say of which repository it is."""
SPLIT = "train"
"""The split that is read where nobody names another."""
ROWS = {"dataset_config": None, "dataset_split": SPLIT, "text_column": None}
"""Flags that say which part of a dataset is read, and their defaults."""
_CHECKPOINTS = ("checkpoint_index", "checkpoint_value", "checkpoint_label")
"""Arguments with which TransformerLens chooses revisions by itself."""


def is_path(source: str) -> bool:
    """Whether a source is meant to be a file or a folder, rather than a name on the Hub.

    A link is one, also where it leads nowhere.
    """
    is_written = source.startswith(("/", "./", "../", "~")) or source in (".", "..")
    return is_written or os.path.islink(source)


def made_from(
    model_name: str, flags: Mapping[str, Any], of_path: Callable[[Path], Fact] = of_path
) -> dict[str, Fact | None]:
    """What is known of the sources of a run before any of them is loaded.

    Args:
        model_name: of the language model, or of the synthetic one.
        flags: SAELens' flags.
        of_path: the fact about a folder or a file.
    """

    def of_source(name: str, revision: str | None) -> Fact | None:
        path = Path(name).expanduser()
        if path.exists():
            return of_path(path)
        return of_repository(name, revision if revision and is_commit(revision) else None)

    found: dict[str, Fact | None] = {}
    if model_name == world.NAME:
        found["world"] = of_code(WORLD)
    elif model_name.startswith(SYNTHETIC):
        found["world"] = of_code(SYNTHETIC_MODELS)
    else:
        found["model"] = of_source(model_name, flags.get("model_revision"))
    if flags.get("dataset_path"):
        found["dataset"] = of_source(flags["dataset_path"], flags.get("dataset_revision"))
        chosen = [f"{name} {flags.get(name) or default}" for name, default in ROWS.items()]
        found["rows"] = {"content": ", ".join(chosen)}
    for name in ("from_pretrained_path", "cached_activations_path"):
        is_used = name == "from_pretrained_path" or flags.get("use_cached_activations")
        if is_used and flags.get(name):
            found[name] = of_source(flags[name], None)
    return found


def commits(model_name: str, flags: Mapping[str, Any]) -> dict[str, str]:
    """The commits of what comes from the Hub, by the flag that names them, where they are known.

    Raises:
        PluginError: a revision is given of what does not come from the Hub.
    """
    found: dict[str, str] = {}
    for flag, source in REVISIONS.items():
        repository = repository_of(source, model_name, flags)
        revision = flags.get(flag)
        if repository is None:
            if revision:
                name = model_name if source == "model_name" else flags.get(source)
                raise PluginError(
                    f"--{flag} {revision}: --{source} {name} is not read from the Hub by its "
                    "revisions; leave it out"
                )
            continue
        commit = commit_of(repository, source.partition("_")[0], revision or _given(flag, flags))
        if commit is not None:
            found[flag] = commit
            continue
        logger.warning(
            "at which commit %s is on the Hub cannot be found out, so run.yaml does not say it",
            repository,
        )
    return found


def _given(flag: str, flags: Mapping[str, Any]) -> str | None:
    """The revision among the arguments of a model."""
    arguments = flags.get("model_from_pretrained_kwargs") or {}
    return arguments.get("revision") if flag == "model_revision" else None


def repository_of(source: str, model_name: str, flags: Mapping[str, Any]) -> str | None:
    """The repository that a flag names; None where it names none, or none that has one commit."""
    name = str((model_name if source == "model_name" else flags.get(source)) or world.NAME)
    if name == world.NAME or name.startswith(SYNTHETIC) or is_path(name):
        return None
    if "://" in name or Path(name).exists():
        return None
    if source != "model_name":
        return name
    kind = flags.get("model_class_name", "HookedTransformer")
    arguments = flags.get("model_from_pretrained_kwargs") or {}
    if kind == "HookedMamba" or any(arguments.get(each) is not None for each in _CHECKPOINTS):
        return None
    if kind != "HookedTransformer":
        return name
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        return str(get_official_model_name(name))
    except ValueError:  # which is said where it is loaded
        return name if "/" in name else None
