"""A run's settings settled: defaults under a method's, a recipe's and the command line's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sae_plugins.base.errors import SaePluginsError, prefixed
from sae_plugins.settings import choice
from sae_plugins.settings.checks import check, check_schedule
from sae_plugins.settings.defaults import model_defaults
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.recipe import converted, read_recipe
from sae_plugins.settings.settings import TRAINING, Settings, does_not_apply
from sae_plugins.world import NAME as WORLD

_ONE_OF = ("lr_warm_up_steps", "lr_warm_up_fraction")


def settle(flags: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a command line's flags, with everything checked that needs no SAELens.

    Args:
        flags: values by name; `recipe` is the name or file of one.
        recipe: the contents of one, in place of that.

    Raises:
        SaePluginsError: a flag or a recipe's key is wrong or does not apply.
        PluginError: plugins, options or the architecture are wrong.
    """
    if recipe is None:
        recipe, notes = read_recipe(flags)
    else:
        notes = []
    names = list(flags.get("plugin", recipe.get("plugin", [])))
    without = list(flags.get("without", recipe.get("without", [])))
    if dropped := [name for name in recipe.get("plugin", []) if name not in names]:
        notes.append(f"--plugin replaces the recipe's {', '.join(dropped)}")
    if "recorder" in without:
        raise SaePluginsError(
            "--without recorder: it writes what every run leaves; it cannot be left out"
        )
    recorder = any(key.startswith("recorder.") for key in (*recipe, *flags))
    chosen = choice.choose(names, without, recorder=recorder)
    options = choice.merged_options(recipe, flags, chosen.plugins)
    training = {k: v for k, v in {**recipe, **flags}.items() if k in TRAINING}
    plan = chosen.plan(options, training, _flags_only(recipe) | _flags_only(flags))
    with prefixed("a method"):
        method = converted(plan.sae_lens)
    values = _merged(method, _flags_only(recipe), _flags_only(flags), notes)
    settings = Settings(values, names, without, plan, notes)
    _note_coefficient(settings, {*recipe, *flags, *plan.sae_lens})
    check(settings)
    _settle_warm_up(settings)
    check_schedule(settings)
    return settings


def options_of(flags: Mapping[str, Any]) -> list[str]:
    """The options ("reorder.interval") of the plugins that flags choose; none if they are wrong."""
    try:
        recipe, _ = read_recipe(flags)
        names = list(flags.get("plugin", recipe.get("plugin", [])))
        chosen = choice.choose(names, [], recorder=False).plugins
    except SaePluginsError:
        return []
    return [f"{name}.{option}" for name, p in chosen.items() for option in p.Options.model_fields]


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
    model_name = together.get("model_name") or WORLD
    architecture = together.get("architecture") or all_flags()["architecture"].default
    merged: dict[str, Any] = {}
    layers = [model_defaults(model_name), dict(method), dict(recipe), dict(flags)]
    for layer in layers:
        if all(name in layer for name in _ONE_OF):
            raise SaePluginsError(f"give only one of --{_ONE_OF[0]} and --{_ONE_OF[1]}")
        for name, value in layer.items():
            reason = does_not_apply(all_flags()[name], model_name, architecture)
            if reason is None:
                for other in _ONE_OF if name in _ONE_OF else ():
                    merged.pop(other, None)
                merged[name] = value
            elif name in flags:
                raise SaePluginsError(f"--{name}: {reason}")
            elif layer is layers[2] and value != all_flags()[name].default:
                notes.append(f"the recipe's {name} is left out: {reason}")
    return {**merged, "model_name": model_name, "architecture": architecture}


def _note_coefficient(settings: Settings, given: Collection[str]) -> None:
    """Say so where the L1 coefficient is a default, which is for another form of the loss."""
    flag = all_flags()["l1_coefficient"]
    applies = settings.architecture in flag.architectures and flag.name not in given
    if applies and settings.plan.training.loss_form == "l2_norm":
        settings.notes.append(
            f"--l1_coefficient is {settings.get(flag.name)}, for squared errors; beside "
            "--loss_form l2_norm 0.04 to 0.3 is usual, and more may leave no feature alive"
        )


def _settle_warm_up(settings: Settings) -> None:
    """Turn the warm-up's share of the run into steps."""
    fraction = settings.values.pop("lr_warm_up_fraction", None)
    if fraction is not None:
        settings.values["lr_warm_up_steps"] = round(fraction * settings.total_steps)
