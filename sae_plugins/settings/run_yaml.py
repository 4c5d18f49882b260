"""A run's own recipe: what its `run.yaml` says, and what a resumed run takes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.secrets import holds_hidden, redacted
from sae_plugins.framework.resolve import TrainingSettings
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.paths import placed
from sae_plugins.settings.settings import NOT_IN_RUN_YAML, RESUMING, Settings
from sae_plugins.settings.values import as_text

if TYPE_CHECKING:
    from sae_plugins.runs.setup import Setup


_NONE_IS_NONE = (
    *("text_seed", "dataset_config", "dataset_split", "text_column", "hook_head_index"),
    *("from_pretrained_path", "pre_act_loss_coefficient", "target_l0"),
)
"""Flags whose default of none stands for no value, in `run.yaml`, too."""


def recipe_of(settings: Settings, setup: Setup) -> dict[str, Any]:
    """The recipe of a run, with what the model decided and SAELens made of other settings."""
    from sae_plugins.base.files import VERSIONS, versions
    from sae_plugins.runs.setup import defaults_of

    sae, runner = setup.sae_config, setup.config(None)
    known = {name: getattr(sae, name) for name in ("d_in", "d_sae", "device")}
    known["log_to_wandb"] = runner.logger.log_to_wandb
    for name in ("prepend_bos", "sequence_separator_token"):  # which the tokenizer decides, too
        if hasattr(runner, name):
            known[name] = getattr(runner, name)
    if hasattr(sae, "matryoshka_widths"):
        known["matryoshka_widths"] = list(sae.matryoshka_widths)
    plugins = [plugin.name for plugin, _ in settings.plan.plugins]
    return {
        "description": f"The run of {' + '.join(settings.names) or 'no plugin'}.",
        "versions": versions([*VERSIONS, *_distributions(plugins)]),
        **settings.as_recipe({**defaults_of(sae, runner, runner.logger), **known}),
        **setup.settings.revisions,
    }


def _distributions(plugins: Sequence[str]) -> list[str]:
    from sae_plugins.framework.registry import installed

    found = installed()
    names = {entry.distribution for name in plugins for entry in found.get(name, [])}
    return sorted(names - {"sae-plugins", "?"})


def of_resumed(flags: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The flags of a run that goes on, from its `run.yaml`; others given must be the same.

    Raises:
        SaePluginsError: lists what differs.
    """
    from sae_plugins.framework.registry import names_file
    from sae_plugins.runs.folder import RECIPE, UNFINISHED

    recipe = folder / UNFINISHED / RECIPE
    began = _began(recipe)
    free, told = not_of_the_run(flags), redacted(placed(flags))  # as run.yaml has them
    if any(map(names_file, told.get("plugin", []))):
        told["plugin"] = [_copied(name, began.get("plugin", [])) for name in told["plugin"]]
    changed = _changed({n: v for n, v in told.items() if n != "resume"}, began)
    if changed:
        raise SaePluginsError(
            f"--resume {folder} goes on with the run as it began; leave these out, or start "
            "another run:\n  " + "\n  ".join(changed)
        )
    run = {"recipe": str(recipe), "output_path": str(folder), "resume": str(folder)}
    if began.get("resume_from_checkpoint"):  # where it began is behind it
        free["resume_from_checkpoint"] = None
    return run | free


def not_of_the_run(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a run that goes on may be given, whatever its `run.yaml` says."""
    from sae_plugins.framework.registry import names_file

    shown, free = redacted(flags), {*RESUMING, *NOT_IN_RUN_YAML}
    return {
        name: value
        for name, value in flags.items()
        if name in free
        or holds_hidden(shown[name])
        or (name == "plugin" and any(map(names_file, value)))
    }


def differences(settings: Settings, recipe: Path) -> list[str]:
    """How the run of a command line differs from that of a `run.yaml`, a sentence each."""
    began, told = _began(recipe), redacted(placed(settings.as_recipe({})))
    told["text_seed"] = settings.get("text_seed")
    if settings.get("data_shards") is not None:  # else they are those of the run
        told["data_shards"] = settings.data_shards
    # most defaults of none stand for a value that the model decides; options belong to plugins
    left_out = {name for name, flag in all_flags().items() if flag.default is None}
    decided = {*settings.values, *TrainingSettings.model_fields, *_NONE_IS_NONE}
    left_out = (left_out - decided) | {name for name in told if "." in name and name not in began}
    return _changed({name: told[name] for name in told if name not in left_out}, began)


def _began(recipe: Path) -> dict[str, Any]:
    """What a `run.yaml` says, which does not say that the text is in one piece."""
    from sae_plugins.recipes import load

    return {"data_shards": 1, **placed(load(str(recipe)))}


def _changed(told: Mapping[str, Any], began: Mapping[str, Any]) -> list[str]:
    return [
        f"--{name} {as_text(value)}, it began with {as_text(began.get(name)) or 'none'}"
        for name, value in told.items()
        if name not in (*RESUMING, *NOT_IN_RUN_YAML) and not _same(value, began.get(name))
    ]


def _copied(name: str, known: Sequence[str]) -> str:
    """What `run.yaml` calls a plugin that a user names, if that is one of a file."""
    from sae_plugins.framework import plugin_files, registry

    if not registry.names_file(name):
        return name
    path, wanted = plugin_files.parted(name)
    stem = f"{plugin_files.FOLDER}/{Path(path).name}:"
    if wanted:
        return f"{stem}{wanted}"
    return next((each for each in known if each.startswith(stem)), stem)


def _same(one: Any, other: Any) -> bool:
    """Whether two values say the same, as texts or as numbers."""
    try:
        return as_text(one) == as_text(other) or float(one) == float(other)
    except (TypeError, ValueError):
        return False
