"""What a run's settings are: defaults under a method's, a recipe's and the command line's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_plugins.settings import choice
from sae_plugins.settings.flags import (
    SYNTHETIC_NAMES,
    Flag,
    UsageError,
    all_flags,
    as_text,
    check_bounds,
    convert,
    unknown_flag,
)
from sae_plugins.world.synthetic_models import SYNTHETIC

if TYPE_CHECKING:
    from pathlib import Path

    from sae_plugins.framework.resolve import Plan, Selected
    from sae_plugins.runs.job import Job, JobSettings

TRAINING = ("accumulate", "clip", "weight_decay", "loss_form")
GROUPS = ("sae", "runner", "synthetic", "logger")
RESUMING = ("checkpoint_every", "keep_checkpoints", "resume_buffer")
NOT_IN_RUN_YAML = ("checkpoint_path",)
_ABOUT_A_RECIPE = ("description", "versions")
_ONE_OF = ("lr_warm_up_steps", "lr_warm_up_fraction")
_ON_SYNTHETIC = {
    *SYNTHETIC_NAMES,
    *("model_name", "device", "adam_beta1", "adam_beta2", "lr", "lr_scheduler_name", "lr_end"),
    *("lr_warm_up_steps", "lr_decay_steps", "n_restart_cycles", "dead_feature_window"),
    *("feature_sampling_window", "n_checkpoints", "save_final_checkpoint", "dtype", "verbose"),
    *("n_batches_for_norm_estimate",),
}

WORLD_DEFAULTS: dict[str, Any] = {
    "hook_name": "blocks.1.hook_resid_post",
    "is_dataset_tokenized": False,
    "streaming": False,
    "training_tokens": 1_000_000,
    "train_batch_size_tokens": 1024,
    "context_size": 128,
    "store_batch_size_prompts": 32,
    "n_batches_in_buffer": 256,
    "normalize_activations": "expected_average_only_in",
    "n_batches_for_norm_estimate": 32,
    "lr": 1e-3,
    "l1_coefficient": 2.0,
    "l0_coefficient": 2.0,
    "k": 32,
    "dead_feature_window": 200,
    "feature_sampling_window": 500,
    "device": "cpu",
}
"""For the embedded world, where SAELens' defaults are for a hundred times as many tokens."""


@dataclass
class Settings:
    """The settings of one run, by flag name.

    Attributes:
        values: SAELens' flags and ours, where anybody set them; options are not among them.
        names: plugins and methods that were chosen, by name.
        without: mechanisms that are left out.
        options: given options by plugin.
        plan: the resolved plugins, with all their options.
        notes: what the user should know, a sentence each.
    """

    values: dict[str, Any]
    names: list[str]
    without: list[str]
    options: dict[str, dict[str, Any]]
    plan: Plan
    notes: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """A flag's value, SAELens' default where nobody set it."""
        return self.values.get(name, all_flags()[name].default)

    @property
    def model_name(self) -> str:
        """The model, or synthetic:PRESET."""
        return str(self.values["model_name"])

    @property
    def is_synthetic(self) -> bool:
        """Whether the run is on SAELens' synthetic model."""
        return self.model_name.startswith(SYNTHETIC)

    @property
    def architecture(self) -> str:
        """SAELens' name of the SAE's architecture."""
        return str(self.get("architecture"))

    @property
    def total_steps(self) -> int:
        """Training steps that SAELens' schedules span: without a last and smaller batch."""
        return int(self.get("training_tokens")) // int(self.get("train_batch_size_tokens"))

    def selected(self) -> list[Selected]:
        """What `sae_plugins.plugins` is given: the chosen ones, the guard and the recorder."""
        return choice.selected(self.names, self.without, recorder=True)

    def left_out(self) -> list[str]:
        """What `sae_plugins.plugins` must leave out of `selected`."""
        return choice.left_out(self.names, self.without)

    def training(self) -> dict[str, Any]:
        """Training settings that were given."""
        return {name: self.values[name] for name in TRAINING if name in self.values}

    def job(self) -> JobSettings:
        """The settings that are SAELens' own."""
        from sae_plugins.runs.job import JobSettings

        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for name, value in self.values.items():
            groups.get(all_flags()[name].group, {})[name] = value
        return JobSettings(
            model_name=self.model_name,
            architecture=self.architecture,
            seed=int(self.get("seed")),
            heldout_tokens=int(self.get("heldout_tokens")),
            sae=groups["sae"],
            runner=groups["runner"] | groups["synthetic"],
            logger=groups["logger"],
        )

    def as_recipe(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that made the run, as a recipe.

        Args:
            resolved: SAELens' defaults, and what was read from the model, by field.
        """
        values = {name: self.get(name) for name in ("seed", "heldout_tokens", *RESUMING)}
        for name, flag in all_flags().items():
            applies = _does_not_apply(flag, self.model_name, self.architecture) is None
            if applies and flag.group in GROUPS and name not in NOT_IN_RUN_YAML:
                value = self.values.get(name, resolved.get(name, flag.default))
                values[name] = list(value) if isinstance(value, tuple) else value
        options = {
            f"{plugin.name}.{name}": value
            for plugin, chosen in self.plan.plugins
            for name, value in chosen.model_dump(mode="json").items()
        }
        training = self.plan.training.model_dump(mode="json")
        lists = {"plugin": self.names, "without": self.without}
        return {**lists, "architecture": self.architecture, **training, **options, **values}


def of_resumed(flags: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The flags of a run that goes on, from its `run.yaml`; others given must be the same.

    Raises:
        UsageError: lists what differs.
    """
    from sae_plugins.recipes import load
    from sae_plugins.runs.folder import RECIPE, UNFINISHED

    recipe = folder / UNFINISHED / RECIPE
    began = load(str(recipe))
    free = {name: flags[name] for name in (*RESUMING, *NOT_IN_RUN_YAML) if name in flags}
    changed = [
        f"--{name} {as_text(value)}, it began with {as_text(began.get(name)) or 'none'}"
        for name, value in flags.items()
        if name != "resume" and name not in free and not _same(value, began.get(name))
    ]
    if changed:
        raise UsageError(
            f"--resume {folder} goes on with the run as it began; leave these out, or start "
            "another run:\n  " + "\n  ".join(changed)
        )
    run = {"recipe": str(recipe), "output_path": str(folder), "resume": str(folder)}
    if began.get("resume_from_checkpoint"):  # where it began is behind it
        free["resume_from_checkpoint"] = None
    return run | free


def _same(one: Any, other: Any) -> bool:
    """Whether two values say the same, as texts or as numbers."""
    try:
        return as_text(one) == as_text(other) or float(one) == float(other)
    except (TypeError, ValueError):
        return False


def settle(flags: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a command line's flags, with everything checked that needs no SAELens.

    Args:
        flags: values by name; `recipe` is the name or file of one.
        recipe: the contents of one, in place of that.

    Raises:
        UsageError: a flag or a recipe's key is wrong or does not apply.
        PluginError: plugins, options or the architecture are wrong.
    """
    if recipe is None:
        recipe, notes = _recipe(flags)
    else:
        notes = []
    names = list(flags.get("plugin", recipe.get("plugin", [])))
    without = list(flags.get("without", recipe.get("without", [])))
    if dropped := [name for name in recipe.get("plugin", []) if name not in names]:
        notes.append(f"--plugin replaces the recipe's {', '.join(dropped)}")
    if "recorder" in without:
        raise UsageError(
            "--without recorder: it writes what every run leaves; it cannot be left out"
        )
    recorder = any(key.startswith("recorder.") for key in (*recipe, *flags))
    chosen = choice.chosen_plugins(names, without, recorder=recorder)
    options = choice.merged_options(recipe, flags, chosen)
    if "output_path" in options.get("recorder", {}):
        raise UsageError(
            "--recorder.output_path: here the recorder writes into the run's folder, which is "
            "--output_path"
        )
    training = {k: v for k, v in {**recipe, **flags}.items() if k in TRAINING}
    plan = choice.resolve_plan(
        names, without, options, training, _flags_only(recipe) | _flags_only(flags)
    )
    method = converted(plan.sae_lens, "a method's ")
    values = _merged(method, _flags_only(recipe), _flags_only(flags), notes)
    settings = Settings(values, names, without, options, plan, notes)
    _note_coefficient(settings, {*recipe, *flags, *plan.sae_lens})
    _check_architecture(settings)
    _check_code(settings)
    check_bounds(values)
    _check_interval(settings)
    _settle_schedule(settings)
    return settings


def _recipe(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    if "recipe" not in flags:
        return {}, []
    from sae_plugins import recipes

    where = f"recipe {flags['recipe']}: "
    contents = recipes.load(flags["recipe"])
    # of a resumed run, the checkpoint knows them
    versions = {} if "resume" in flags else contents.get("versions", {})
    notes = _version_notes(versions, str(flags["recipe"]))
    keys = {name: value for name, value in contents.items() if name not in _ABOUT_A_RECIPE}
    for name in ("recipe", "overwrite", "resume"):
        if name in keys:
            raise UsageError(f"{where}{name!r} belongs on the command line, not in a recipe")
    found = converted(keys, where)
    _check_packages(found, versions, where)
    return found, notes


def _check_packages(recipe: Mapping[str, Any], versions: Mapping[str, str], where: str) -> None:
    """Name the package whose plugin a recipe needs, where it is not installed."""
    from sae_plugins.base.files import versions as installed
    from sae_plugins.framework import registry

    unknown = [name for name in recipe.get("plugin", []) if name not in registry.installed()]
    now = installed(versions)
    absent = [f"{n} {v}" for n, v in versions.items() if n not in now]
    if unknown and absent:
        raise UsageError(
            f"{where}no plugin {unknown[0]!r} is installed; the run was made with "
            f"{' and '.join(absent)}, which is missing here"
        )


def converted(contents: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values as the flags of their names have them.

    Raises:
        UsageError: there is no such flag, or the value does not fit; `where` begins the message.
    """
    return {name: _converted(name, value, where) for name, value in contents.items()}


def _converted(name: str, value: Any, where: str) -> Any:
    if "." in name:
        return value
    flag = all_flags().get(name)
    if flag is None:
        raise UsageError(where + unknown_flag(name))
    if flag.type == "list[str]":
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return convert(flag, value, where)


def _version_notes(versions: Any, recipe: str) -> list[str]:
    from sae_plugins.base.files import versions as installed

    if not isinstance(versions, dict):
        raise UsageError(f"recipe {recipe}: 'versions' must be a mapping of names to versions")
    now = installed(versions)
    changed = [f"{n} {v} (now {now.get(n)})" for n, v in versions.items() if now.get(n) != str(v)]
    if not changed:
        return []
    return [f"{recipe} was made with other versions, so the run may differ: {', '.join(changed)}"]


def options_of(flags: Mapping[str, Any]) -> list[str]:
    """The options ("reorder.interval") of the plugins that flags choose; none if they are wrong."""
    from sae_plugins.base.errors import PluginError

    try:
        recipe, _ = _recipe(flags)
        chosen = choice.chosen_plugins(
            list(flags.get("plugin", recipe.get("plugin", []))), [], recorder=False
        )
    except (PluginError, UsageError):
        return []
    return [f"{name}.{option}" for name, p in chosen.items() for option in p.Options.model_fields]


# -- flags -------------------------------------------------------------------------------------


def _flags_only(source: Mapping[str, Any]) -> dict[str, Any]:
    lists = ("plugin", "without")
    return {name: value for name, value in source.items() if "." not in name and name not in lists}


def _merged(
    method: Mapping[str, Any],
    recipe: Mapping[str, Any],
    flags: Mapping[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """The layers, each under the next; what does not apply is dropped, or an error in a flag."""
    together = {**method, **recipe, **flags}
    model_name = together.get("model_name") or _world()
    architecture = together.get("architecture") or all_flags()["architecture"].default
    merged: dict[str, Any] = {}
    layers = [_defaults(model_name), dict(method), dict(recipe), dict(flags)]
    for layer in layers:
        if all(name in layer for name in _ONE_OF):
            raise UsageError(f"give only one of --{_ONE_OF[0]} and --{_ONE_OF[1]}")
        for name, value in layer.items():
            reason = _does_not_apply(all_flags()[name], model_name, architecture)
            if reason is None:
                for other in _ONE_OF if name in _ONE_OF else ():
                    merged.pop(other, None)
                merged[name] = value
            elif name in flags:
                raise UsageError(f"--{name}: {reason}")
            elif layer is layers[2] and value != all_flags()[name].default:
                notes.append(f"the recipe's {name} is left out: {reason}")
    return {**merged, "model_name": model_name, "architecture": architecture}


def _world() -> str:
    from sae_plugins.world import NAME

    return NAME


def _defaults(model_name: str) -> dict[str, Any]:
    if model_name == _world():
        return WORLD_DEFAULTS
    if model_name.startswith(SYNTHETIC):
        from sae_plugins.runs.synthetic import settings_of

        return settings_of(model_name.removeprefix(SYNTHETIC))
    return {"is_dataset_tokenized": False, "n_batches_in_buffer": 64}


def applies(name: str, settings: Settings) -> bool:
    """Whether a flag, or an option of a plugin, belongs to a run with these settings.

    Raises:
        UsageError: there is no such flag.
    """
    plugin, dot, _ = name.partition(".")
    if dot:
        return any(plugin == chosen.name for chosen, _ in settings.plan.plugins)
    if name not in all_flags():
        raise UsageError(unknown_flag(name))
    flag = all_flags()[name]
    return _does_not_apply(flag, settings.model_name, settings.architecture) is None


def _does_not_apply(flag: Flag, model_name: str, architecture: str) -> str | None:
    if flag.architectures and architecture not in flag.architectures:
        owners = " and ".join(flag.architectures)
        return f"{architecture} SAEs do not have it; {owners} SAEs do"
    synthetic = model_name.startswith(SYNTHETIC)
    if flag.group == "synthetic" and not synthetic:
        return "it is for --model_name synthetic:PRESET only"
    if flag.group == "runner" and synthetic and flag.name not in _ON_SYNTHETIC:
        return f"it does not apply to {model_name}"
    return None


def _check_architecture(settings: Settings) -> None:
    from sae_plugins.base.errors import PluginError
    from sae_plugins.framework.architectures import architecture

    name = settings.architecture
    try:
        settings.plan.check(architecture(name))
    except PluginError as error:  # the plugin may be one that a method brings
        raise UsageError(
            f"--architecture {name}: {error}; choose another one, or leave the plugin out"
        ) from error


def _settle_schedule(settings: Settings) -> None:
    """Turn the warm-up's share into steps, and check that the schedule fits into the run."""
    total = settings.total_steps
    if total < 1:
        raise UsageError(
            f"--training_tokens {settings.get('training_tokens')} is less than one batch: raise "
            f"it, or lower --train_batch_size_tokens {settings.get('train_batch_size_tokens')}"
        )
    fraction = settings.values.pop("lr_warm_up_fraction", None)
    if fraction is not None:
        settings.values["lr_warm_up_steps"] = round(fraction * total)
    warm_up, decay = settings.get("lr_warm_up_steps"), settings.get("lr_decay_steps")
    scheduler, lr, lr_end = (settings.get(n) for n in ("lr_scheduler_name", "lr", "lr_end"))
    needed = {"constant": 0, "cosineannealing": 1}.get(scheduler, settings.get("n_restart_cycles"))
    if warm_up + decay + needed > total:
        raise UsageError(
            f"--lr_warm_up_steps {warm_up} and --lr_decay_steps {decay} do not fit into the run's "
            f"{total} steps{f', of which {scheduler} needs {needed}' if needed else ''}: lower "
            "them, or raise --training_tokens"
        )
    if settings.get("n_checkpoints") > total:
        raise UsageError(
            f"--n_checkpoints {settings.get('n_checkpoints')} is more than the run's {total} steps"
        )
    if decay and scheduler != "constant" and lr_end is not None and not 0 < lr_end <= lr:
        raise UsageError(
            f"--lr_decay_steps {decay} decays from --lr_end {lr_end}, which must be greater than 0 "
            f"and at most --lr {lr}"
        )


def _note_coefficient(settings: Settings, given: Collection[str]) -> None:
    """Say so where the L1 coefficient is a default, which is for another form of the loss."""
    flag = all_flags()["l1_coefficient"]
    applies = settings.architecture in flag.architectures and flag.name not in given
    if applies and settings.plan.training.loss_form == "l2_norm":
        settings.notes.append(
            f"--l1_coefficient is {settings.get(flag.name)}, for squared errors; beside "
            "--loss_form l2_norm 0.04 to 0.3 is usual, and more may leave no feature alive"
        )


def _check_interval(settings: Settings) -> None:
    if "checkpoint_every" not in settings.values:
        return
    from sae_plugins.base.errors import PluginError
    from sae_plugins.resume.files import interval

    try:
        interval(settings.get("checkpoint_every"))
    except PluginError as error:
        raise UsageError(f"--checkpoint_every {error}") from error


def _check_code(settings: Settings) -> None:
    """Refuse to run code that comes with a model, whoever asks for it."""
    for name in ("model_from_pretrained_kwargs", "model_kwargs"):
        if "trust_remote_code" in str(settings.get(name)):
            raise UsageError(
                f"--{name}: trust_remote_code is not available: sae-plugins never runs code that "
                "comes with a model"
            )


def recipe_of(settings: Settings, job: Job) -> dict[str, Any]:
    """The recipe of a run, with what the model decided and SAELens made of other settings."""
    from sae_plugins.base.files import VERSIONS, versions
    from sae_plugins.runs.job import defaults_of

    sae, runner = job.sae_config, job.config(None)
    known = {name: getattr(sae, name) for name in ("d_in", "d_sae", "device")}
    known["log_to_wandb"] = runner.logger.log_to_wandb
    if hasattr(sae, "matryoshka_widths"):
        known["matryoshka_widths"] = list(sae.matryoshka_widths)
    plugins = [plugin.name for plugin, _ in settings.plan.plugins]
    return {
        "description": f"The run of {' + '.join(settings.names) or 'no plugin'}.",
        "versions": versions([*VERSIONS, *_distributions(plugins)]),
        **settings.as_recipe({**defaults_of(sae, runner, runner.logger), **known}),
    }


def _distributions(plugins: Sequence[str]) -> list[str]:
    from sae_plugins.framework.registry import installed

    found = installed()
    names = {entry.distribution for name in plugins for entry in found.get(name, [])}
    return sorted(names - {"sae-plugins", "?"})
