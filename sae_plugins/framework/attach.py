"""`sae_plugins.plugins(...)`: inside it, SAELens trains with plugins."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import join
from sae_plugins.framework.resolve import Plan, Selected, resolve
from sae_plugins.framework.unused import unused

if TYPE_CHECKING:
    from sae_plugins.framework.profile import Profile
    from sae_plugins.framework.thresholds import HeldOut
    from sae_plugins.resume.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


@contextmanager
def plugins(
    *names: Selected | Plan,
    without: Collection[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int | None = None,
    checkpoints: Checkpoints | None = None,
    profile: Profile | None = None,
    text: HeldOut | None = None,
    data_shards: int | None = None,
) -> Iterator[Plan]:
    """Make every `SAETrainer` that is built inside, by any SAELens runner, use these plugins.

    Args:
        names: plugins and methods by name, or plugin classes; none of them is plain SAELens. A
            resolved `Plan` stands alone, without `without`, `options` and `training`.
        without: mechanisms to leave out of what `names` expands to (an ablation).
        options: options by plugin name, `{"reorder": {"interval": 250}}`.
        training: settings that SAELens lacks: `accumulate`, `loss_form`, `weight_decay`,
            `weight_decay_form`, `clip`, `calibrate_threshold`, `calibrate_l0`, `calibrate_tokens`,
            `fast_step`, `matmul_precision`. What the others make useless is refused.
        seed: seeds python, numpy and torch on entry, and each plugin's own generator. None leaves
            the global random state alone.
        checkpoints: where the state of the training is kept, and resumed from; None for nowhere.
        profile: measures where the time goes; None for nothing.
        text: what has held-out text, which sets the thresholds of `calibrate_l0`.
        data_shards: parts into which the text is cut, so that several ranks can read it; a number
            that theirs divides. None for one part, or under torchrun for 8 if that can be.

    SAELens' own settings (learning rate, its schedule, ...) stay those of the runner's config; the
    ones that a method asks for are in the yielded plan's `sae_lens`.

    Yields:
        The resolved `Plan`: plugins in order, with validated options.

    Raises:
        PluginError: unknown names or options (with suggestions), conflicts, or a plugin that does
            not work on the SAE's architecture; before any training.
        RankError: other ranks did not come.
        RuntimeError: another `plugins` context is open.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise PluginError(f"seed={seed!r}: give a whole number, or None")
    plan = plan_of(names, without=without, options=options, training=training)
    from sae_plugins.base.saelens import trainer_class
    from sae_plugins.base.seeds import seed_everything  # after resolve: errors need no torch
    from sae_plugins.framework.trainer import PluginTrainer
    from sae_plugins.resume.division import check_shards, shards_for
    from sae_plugins.resume.shards import loaded

    size = join().size
    if size > 1 and seed is None:
        raise PluginError(
            f"seed=None: {size} ranks train one SAE, and would draw different weights; give a seed"
        )
    shards = shards_for(size) if data_shards is None else data_shards
    check_shards(shards, shards, size)  # the batch is known when a trainer is built
    built = False

    class Bound(PluginTrainer):
        pass

    def bound() -> type[PluginTrainer]:
        nonlocal built
        built = True
        return Bound

    Bound.plan, Bound.seed = plan, 0 if seed is None else seed
    if seed is not None:
        seed_everything(seed)
    order = " -> ".join(plugin.name for plugin, _ in plan.plugins)
    logger.info("plugins, in order: %s", order or "none")
    Bound.checkpoints, Bound.profile, Bound.numbers = checkpoints, profile, itertools.count(1)
    Bound.text, Bound.shards = text, shards
    loading = loaded(shards, Bound.seed)
    if checkpoints is not None:
        checkpoints.shards, checkpoints.seed = shards, Bound.seed
        loading = checkpoints.open()
    with trainer_class(bound), ExitStack() as stack:
        if profile is not None:
            stack.enter_context(profile.open())
        stack.enter_context(loading)
        yield plan
    if plan.plugins and not built:
        logger.warning(
            "no trainer was built inside `sae_plugins.plugins(%s)`, so nothing was trained with "
            "it: call the runner's run(), or SAETrainer(), inside the with block",
            ", ".join(plugin.name for plugin, _ in plan.plugins),
        )


def plan_of(names: Sequence[Selected | Plan], **settings: Any) -> Plan:
    """The plan that names come down to, or the one that is given; see `plugins`."""
    plans = [name for name in names if isinstance(name, Plan)]
    if not plans:
        plan = resolve([name for name in names if not isinstance(name, Plan)], **settings)
        if wrong := [*unused(settings["training"] or {}, plan.training)]:
            raise PluginError(*wrong)
        return plan
    if len(names) > 1 or any(settings.values()):
        raise PluginError("a plan has its plugins, options and training settings: give it alone")
    return plans[0]
