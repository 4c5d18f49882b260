"""A run's settings settled: defaults under a method's, a recipe's and the command line's."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import Problems, prefixed
from sae_plugins.framework import plugin_files
from sae_plugins.framework.plugin import Method
from sae_plugins.framework.resolve import Plan, TrainingSettings
from sae_plugins.recipes import names as recipe_names
from sae_plugins.runs.places import check_places
from sae_plugins.runs.sources import REVISIONS
from sae_plugins.settings import choice
from sae_plugins.settings.checks import (
    SCHEDULE,
    check_architecture,
    check_budget,
    check_code,
    check_dashboards,
    check_dtype,
    check_interval,
    check_sae,
    check_schedule,
    check_secrets,
    check_wandb,
)
from sae_plugins.settings.defaults import model_defaults
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.paths import placed
from sae_plugins.settings.recipe import converted, read_recipe
from sae_plugins.settings.settings import Settings
from sae_plugins.settings.suggestions import unknown_flag
from sae_plugins.settings.uses import does_not_apply
from sae_plugins.world import NAME as WORLD

STOCK = TrainingSettings()
_ONE_OF = (
    ("lr_warm_up_steps", "lr_warm_up_fraction"),
    ("lr_decay_steps", "lr_decay_fraction"),
)
"""Steps, and the same as a share of the run's."""


def settle(
    flags: Mapping[str, Any],
    recipe: Mapping[str, Any] | None = None,
    *,
    unknown: Iterable[str] = (),
    problems: Problems | None = None,
    is_to_start: bool = False,
    later: Collection[str] = (),
) -> Settings:
    """Settings from a command line's flags, with everything checked that needs no SAELens.

    Where a name is misspelt, what is probably meant is checked, so that all that is wrong is found.

    Args:
        flags: values by name; `recipe` is the name or file of one.
        recipe: the contents of one, in place of that.
        unknown: flags that were given, too, and that there are not.
        problems: what is known to be wrong.
        is_to_start: whether the run is to start now, so that what it reads must be there.
        later: flags of the SAE that get other values before a run starts.

    Raises:
        SaePluginsError: with a sentence for each thing that is wrong.
    """
    problems = Problems() if problems is None else problems
    notes: list[str] = []
    if recipe is None:
        recipe, notes = read_recipe(flags, problems)
    is_lost = "recipe" in flags and not recipe
    recipe = _without_revisions(recipe, flags)
    names = list(flags.get("plugin", recipe.get("plugin", [])))
    without = list(flags.get("without", recipe.get("without", [])))
    files = choice.from_files(flags.get("plugin", ()), problems)
    copies = [plugin_files.copy_of(each) for each in files.values() if each is not None]
    if dropped := [name for name in recipe.get("plugin", []) if name not in (*names, *copies)]:
        notes.append(_replaced(dropped, names, flags))
    if "recorder" in without:
        problems.add("--without recorder: it writes what every run leaves; it cannot be left out")
        without.remove("recorder")
    meant = choice.corrected([name for name in names if name not in files], problems)
    recipe, flags = choice.renamed(recipe, meant), choice.renamed(flags, meant)
    existing = [right for name in names if (right := {**meant, **files}.get(name, name))]
    names = [name if (own := files.get(name)) is None else own.name for name in names]
    chosen = choice.choose(existing, without, {*recipe, *flags}, problems)
    replaced = [] if "plugin" in flags else recipe.get("plugin", [])
    owners = choice.owners(chosen.plugins, without, replaced)
    problems.add(*(unknown_flag(name, all_flags(), owners) for name in unknown))
    options = choice.merged_options(recipe, flags, chosen.plugins, owners, problems)
    training = {k: v for k, v in {**recipe, **flags}.items() if k in TrainingSettings.model_fields}
    given = _flags_only(recipe), _flags_only(flags)
    plan, defaults, method = None, {}, {}
    with problems:
        defaults = model_defaults({**given[0], **given[1]}.get("model_name") or WORLD)
    with problems:
        plan = chosen.plan(options, training, given[0] | given[1])
        with prefixed("a method"):
            method = converted(plan.sae_lens) | _training_of(chosen.methods, plan)
    # what applies to a run shows only where its model and architecture are known
    blind = is_lost or problems.mention("--architecture", "--model_name")
    values = _merged((defaults, method, *given), notes, Problems() if blind else problems)
    checks = (check_code, check_dtype, check_interval, check_budget, check_wandb, check_dashboards)
    for check in checks:
        with problems:
            check({**given[0], **given[1], **values})  # what does not apply here, too
    with problems:
        check_secrets({**recipe, **flags})
    if is_to_start and not blind:
        with problems:
            check_places(values)
    if plan is None:
        problems.stop()
    assert plan is not None
    packaged = flags.get("recipe") if flags.get("recipe") in recipe_names() else None
    settings = Settings(values, names, without, plan, notes, packaged)
    _settle_training(settings)
    _note_coefficient(settings, {*recipe, *flags, *plan.sae_lens})
    _note_accumulation(settings)
    with problems:
        check_architecture(settings)
    if not blind and not problems:
        with problems:
            check_sae(settings, later)
    if not blind and not problems.mention(*(f"--{name}" for name in SCHEDULE)):
        _settle_shares(settings)
        with problems:
            check_schedule(settings)
    problems.stop()
    return settings


def _training_of(methods: Iterable[type[Method]], plan: Plan) -> dict[str, Any]:
    """What methods say of the training loop, at the values that count."""
    return plan.training.model_dump(include={name for m in methods for name in m.training})


def _without_revisions(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the revisions of data and models in whose place flags name others."""
    replaced = [
        revision
        for revision, source in REVISIONS.items()
        if source in flags and flags[source] != recipe.get(source)
    ]
    return {name: value for name, value in recipe.items() if name not in replaced}


def _flags_only(source: Mapping[str, Any]) -> dict[str, Any]:
    lists = ("plugin", "without")
    return {name: value for name, value in source.items() if "." not in name and name not in lists}


def _merged(
    layers: Sequence[Mapping[str, Any]], notes: list[str], problems: Problems
) -> dict[str, Any]:
    """A model's defaults, a method's settings, a recipe's and flags, each under the next.

    What does not apply is dropped, or an error in a flag.
    """
    _, _, recipe, flags = layers
    together = {name: value for layer in layers for name, value in layer.items()}
    value = {name: flag.default for name, flag in all_flags().items()} | {"model_name": WORLD}
    for name in ("model_name", "architecture"):
        together[name] = together.get(name) or value[name]
    value |= together
    merged: dict[str, Any] = {}
    for layer in layers:
        for steps, share in _ONE_OF:
            if steps in layer and share in layer:
                problems.add(f"give only one of --{steps} and --{share}")
        for name, given in layer.items():
            reason = does_not_apply(all_flags()[name], value.get)
            if reason is None:
                for other in (other for pair in _ONE_OF if name in pair for other in pair):
                    merged.pop(other, None)
                merged[name] = given
            elif name in flags:
                problems.add(f"--{name}: {reason}")
            elif layer is recipe and given != all_flags()[name].default:
                notes.append(f"the recipe's {name} is left out: {reason}")
    own = {"model_name": value["model_name"], "architecture": value["architecture"]}
    return placed({**merged, **own}, notes)


def _note_coefficient(settings: Settings, given: Collection[str]) -> None:
    """Say so where the L1 coefficient is a default, which is for another form of the loss."""
    flag = all_flags()["l1_coefficient"]
    applies = settings.architecture in flag.architectures and flag.name not in given
    if applies and settings.plan.training.loss_form == "l2_norm":
        settings.notes.append(
            f"--l1_coefficient is {settings.get(flag.name)}, for squared errors; beside "
            "--loss_form l2_norm 0.04 to 0.3 is usual, and more may leave no feature alive"
        )


def _replaced(dropped: Sequence[str], names: Sequence[str], flags: Mapping[str, Any]) -> str:
    """What is said where the plugins of a recipe are replaced."""
    from sae_plugins.runs.recipe_file import named_again

    recipe = Path(str(flags.get("recipe", "")))
    kept = named_again(recipe, dropped).strip() or f"--plugin {shlex.join(dropped)}"
    told = f"--plugin replaces the recipe's {', '.join(dropped)}"
    return f"{told}; to keep that, too, give {kept} {shlex.join(names)}"


def _settle_training(settings: Settings) -> None:
    """Leave out what does not apply; calibrate thresholds where there are some, unless told not."""
    training, calibrate = settings.plan.training, "calibrate_threshold"
    left_out = ("fast_step", "calibrate_l0", "calibrate_tokens")
    update = {name: getattr(STOCK, name) for name in left_out if not settings.applies(name)}
    update[calibrate] = settings.applies(calibrate) and settings.get(calibrate)
    settings.plan = replace(settings.plan, training=training.model_copy(update=update))


def _note_accumulation(settings: Settings) -> None:
    """Say so where the batches of one update are not the same as one large batch."""
    from sae_plugins.framework.architectures import architecture

    row, batches = architecture(settings.architecture), settings.plan.training.accumulate
    by_settings = (why for name, why in row.batch_coupled_by.items() if settings.get(name))
    reason = row.batch_coupled or next(by_settings, None)
    if reason and batches > 1:
        settings.notes.append(
            f"--accumulate {batches} is not the same as batches {batches} times as large for a "
            f"{row.name} SAE: {reason}"
        )


def _settle_shares(settings: Settings) -> None:
    """Turn shares of the run into steps."""
    for steps, share in _ONE_OF:
        fraction = settings.values.pop(share, None)
        if fraction is not None:
            settings.values[steps] = round(fraction * settings.total_steps)
