"""Several SAEs trained in lockstep: one stream of activations, so one pass of the language model.

Each SAE has a trainer, a configuration and plugins of its own, and ends up with the very weights
that `sae-plugins train` gives it with the same settings: the stream is that of such a run, and an
SAE that trains beside others cannot tell.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_plugins.base.errors import PluginError, StateError
from sae_plugins.base.files import durable, write
from sae_plugins.base.ranks import ranks
from sae_plugins.base.saelens import no_bars
from sae_plugins.base.seeds import isolated_random_state, seed_data
from sae_plugins.resume.files import files
from sae_plugins.resume.together import Kept, Place, discard
from sae_plugins.runs.folder import ORIGIN, RECIPE, TRAINING_SUMMARY, remove_run
from sae_plugins.runs.heldout import AtHand, heldout_metrics
from sae_plugins.runs.lockstep_arm import LockstepRun, Training, ends_alone, without_frames
from sae_plugins.runs.lockstep_checkpoints import Group, LockstepCheckpoints
from sae_plugins.runs.memory import beside_saes, bytes_in_training, memory_of
from sae_plugins.runs.recipe_file import write_recipe
from sae_plugins.runs.setup import Setup, quiet
from sae_plugins.runs.stream_key import stream_key
from sae_plugins.runs.summary import TUNING, saved_saes, write_summary

__all__ = ["Kept", "LockstepRun", "train", "without_frames"]

logger = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.5
"""What SAEs in training may take of the memory that the language model and its buffer leave."""
_FLAGS = {"unseen_tokens": "--calibrate_l0 or --calibrate_tokens"}
"""What users call settings that are no flags."""
_ALONE = (
    *("n_checkpoints", "save_final_checkpoint", "resume_from_checkpoint", "prefetch_llm_batches"),
)


def train(
    arms: Sequence[LockstepRun],
    progress: Callable[[int, int], None] = lambda done, total: None,
    finished: Callable[[LockstepRun], None] = lambda arm: None,
    processes: int = 1,
    checkpoints: Kept | None = None,
    timed: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Exception]:
    """Train arms that see the same batches, and score them on the same held-out text.

    As many as fit into memory train at once; the others follow, on the same batches again. Several
    ranks share the language model's work and the arms: each trains some of them on all batches.

    With checkpoints, arms that were interrupted go on as if they had not been, without those that
    are in their places meanwhile; arms that are new begin after them. A checkpoint that is damaged,
    or of other settings, data or code, is told of and removed, and its arms start over. Several
    ranks write none.

    Args:
        arms: they have equal `stream_key`s; their lengths of training may differ.
        progress: told after each batch how many batches are done, and how many there are in all.
        finished: told of each arm whose folder is there, before the next ones that fit train.
        processes: how many train on the device at once, each with a language model of its own.
        checkpoints: where their state is kept while they train, if anywhere.
        timed: told of the seconds that the arms took, without the batches, which they share.

    Returns:
        What ended this rank's arms that failed, by name. The folder of every other one of its arms
        is there.

    Raises:
        PluginError: the arms cannot be trained in lockstep.
    """
    _check(arms)
    passes = [*_planned(arms, processes, checkpoints)]
    lengths = [max(map(_steps, together)) for together, _ in passes]
    failures: dict[str, Exception] = {}
    done = 0
    for (together, kept), length in zip(passes, lengths, strict=True):

        def advanced(steps: int, before: int = done) -> None:
            progress(before + steps, sum(lengths))

        own = _own(together)
        try:
            with quiet(), no_bars():
                group = _train(together[0].setup, own, advanced, kept)
            failures |= group.failures
            timed(group.training)
            if kept is not None:
                with suppress(OSError):
                    discard(kept.folder)
        finally:
            # arms that are done when the others are interrupted stay where they are
            for arm in own if kept is None or not files(kept.folder) else ():
                with suppress(OSError):
                    remove_run(arm.unfinished)
        for arm in own:
            if arm.name not in failures:
                finished(arm)
        done += length
    return failures


def _check(arms: Sequence[LockstepRun]) -> None:
    for what in ("name", "folder"):
        taken, times = Counter(getattr(arm, what) for arm in arms).most_common(1)[0]
        if times > 1:
            raise PluginError(f"{times} arms have the {what} {taken}: each needs its own")
    first = json.loads(stream_key(arms[0].setup.settings))
    for arm in arms:
        settings = arm.setup.settings
        if arm.folder.exists():
            raise PluginError(f"arm {arm.name}: {arm.folder} is already there; name another folder")
        alone = [name for name in _ALONE if settings.runner.get(name)]
        alone += ["log_to_wandb"] if settings.logger.get("log_to_wandb") else []
        if alone:
            raise PluginError(
                f"arm {arm.name}: --{alone[0]} is for SAEs that train alone; leave it out"
            )
        key = json.loads(stream_key(settings))
        differ = [name for name in sorted({*first, *key}) if first.get(name) != key.get(name)]
        if differ:
            flags = ", ".join(_FLAGS.get(name, f"--{name}") for name in differ)
            raise PluginError(
                f"arm {arm.name} would see other batches than arm {arms[0].name}, so they cannot "
                f"be trained in lockstep: {flags} differ; give both the same, or train them apart"
            )


def _planned(
    arms: Sequence[LockstepRun], processes: int, kept: Kept | None
) -> Iterator[tuple[list[LockstepRun], Place | None]]:
    """The passes to come, those first that had begun, each with the place of its checkpoints."""
    if kept is None or ranks().size > 1:
        yield from ((together, None) for together in _passes(arms, processes))
        return
    left = {arm.name: arm for arm in arms}
    for place, names in kept.begun({*left}):
        together = [left[name] for name in names if name in left]
        if together and len([*_passes(together, processes)]) > 1:
            logger.warning("%d SAEs start over: there is less memory than before", len(together))
            discard(place.folder)
        elif together:
            yield together, place
            left = {name: arm for name, arm in left.items() if name not in names}
    for together in _passes([*left.values()], processes) if left else ():
        yield together, kept.of(arm.name for arm in together)


def _passes(arms: Sequence[LockstepRun], processes: int) -> Iterator[list[LockstepRun]]:
    """The arms in groups that fit into memory, each with one arm at least."""
    setup = arms[0].setup
    own = memory_of(setup.settings.device) / processes
    free = own - beside_saes(setup.needs(), setup.settings.device)
    room = SHARE_OF_MEMORY * min(ranks().all(free))  # so that all have as many passes
    together: list[LockstepRun] = []
    taken = [0] * ranks().size
    for arm in arms:
        needed, rank = bytes_in_training(arm.setup.sae_config), len(together) % len(taken)
        if taken[rank] and taken[rank] + needed > room:
            yield together
            together, taken, rank = [], [0] * len(taken), 0
        together.append(arm)
        taken[rank] += needed
    yield together


def _own(together: Sequence[LockstepRun]) -> list[LockstepRun]:
    """The arms that this rank trains: every so manyth."""
    return [*together[ranks().rank :: ranks().size]]


def _steps(arm: LockstepRun) -> int:
    config = arm.setup.config(None).to_sae_trainer_config()
    samples = 0 if arm.untrained else config.total_training_samples
    samples += arm.following_tokens
    return int(-(-samples // config.train_batch_size_samples))


def _train(
    setup: Setup,
    arms: Sequence[LockstepRun],
    advanced: Callable[[int], None],
    place: Place | None,
) -> Group:
    """`train`, for arms that fit into memory; `setup` is as all ranks have it."""
    if place is None:
        return _train_from(setup, arms, advanced, None)
    goes_on = bool(files(place.folder))
    try:
        return _train_kept(setup, arms, advanced, place)
    except StateError as error:
        if not goes_on:
            raise
        without_frames(error)
        reason = _first_reason(error)
    gc.collect()
    logger.warning("%d SAEs start over: %s", len(arms), reason)
    discard(place.folder)
    return _train_kept(setup, arms, advanced, place)


def _first_reason(error: StateError) -> str:
    """What is wrong with a checkpoint, without the rest of what differs."""
    first, *lines = str(error).splitlines()
    return f"their checkpoint is not theirs any more ({lines[0].strip()})" if lines else first


def _train_kept(
    setup: Setup, arms: Sequence[LockstepRun], advanced: Callable[[int], None], place: Place
) -> Group:
    kept = LockstepCheckpoints(place.folder, place.every)
    with kept.begin(arms):
        return _train_from(setup, arms, advanced, kept)


def _train_from(
    setup: Setup,
    arms: Sequence[LockstepRun],
    advanced: Callable[[int], None],
    kept: LockstepCheckpoints | None,
) -> Group:
    """Train from the beginning, or from where the checkpoint is."""
    group = Group(setup, arms, [] if kept is None else kept.done(arms))
    seed_data(setup.settings.seed)
    ranks().patiently()  # arms take long to build, and to score
    stream = group.data_provider = setup.stream()
    goes_on = kept is not None and kept.goes_on
    if kept is not None:
        kept.take(group)
    if not goes_on:
        scaler = ActivationScaler()
        if ranks().agree(bool(group.running))[0]:
            scaler = _scaler(setup, stream)
        _each(group, lambda training: training.start(replace(scaler)))
    with nullcontext() if kept is None else kept.signals:
        _run(group, advanced, kept)
    setup.tell_skipped()
    left = [arm for arm in arms if arm.name not in group.failures]
    _score(group, [arm for arm in left if not arm.tuning_tokens])
    for arm in left:
        if arm.tuning_tokens:
            with ends_alone(arm, group.failures):
                _tune(group, arm)
    return group


def _run(group: Group, advanced: Callable[[int], None], kept: LockstepCheckpoints | None) -> None:
    """Give all arms that are left their batches, until none is."""
    while ranks().agree(bool(group.running))[0]:  # all batches are whole, so all ranks read them
        if kept is not None:
            kept.between_steps(group)
        batch = next(group.data_provider, None)
        began = time.perf_counter()
        if batch is None:  # the data end where nothing is left to train on, or an arm fails
            _each(group, lambda training: training.end())
            break
        before = len(group.running)
        _step(group, batch)
        group.training += time.perf_counter() - began
        if len(group.running) < before:
            gc.collect()  # trainers, plugins and SAEs know each other
        group.n_training_steps += 1
        advanced(group.n_training_steps)
    if kept is not None:
        kept.between_steps(group)


def _scaler(setup: Setup, stream: Iterator[Tensor]) -> ActivationScaler:
    """What normalises the activations, from as many batches as SAELens' `fit` takes for it."""
    scaler, config = ActivationScaler(), setup.sae_config
    batches = setup.config(None).to_sae_trainer_config().n_batches_for_norm_estimate
    if config.normalize_activations == "expected_average_only_in":
        scaler.estimate_scaling_factor(config.d_in, stream, batches)
    elif config.normalize_activations == "covariance_whitening":
        scaler.estimate_whitening(config.d_in, stream, batches)
    return scaler


def _step(group: Group, batch: Tensor) -> None:
    """Give each arm the batch as it came, whatever those before it did to it."""
    if not group.running:
        return
    batch = batch.to(group.running[0].trainer.sae.device)
    as_it_came = batch.clone()

    def step(training: Training) -> None:
        batch.copy_(as_it_came)
        training.step(batch, as_it_came)

    with isolated_random_state():  # which the stream is drawn from
        _each(group, step)


def _each(group: Group, act: Callable[[Training], None]) -> None:
    """Have all arms do something; those that are done or fail no longer run."""
    for training in group.running:
        with ends_alone(training.arm, group.failures):
            act(training)
    group.running = [
        t for t in group.running if not t.is_saved and t.arm.name not in group.failures
    ]


def _score(group: Group, arms: Sequence[LockstepRun]) -> None:
    """Score the saved SAEs on the same text, and move them to their places."""
    failures, saved = group.failures, dict[str, list[SAE[Any]]]()
    for arm in arms:
        with ends_alone(arm, failures):
            saved[arm.name] = saved_saes(arm.unfinished, arm.setup.sae_config.device)
    metrics: dict[str, list[dict[str, float]]] = {}
    try:
        found = iter(arms[0].setup.heldout([*chain(*saved.values())]) if arms else [])
        metrics = {name: [next(found) for _ in saes] for name, saes in saved.items()}
    except Exception:  # of one of them, which cannot be told from the others together
        for arm in arms:
            with ends_alone(arm, failures):
                if arm.name in saved:
                    metrics[arm.name] = arm.setup.heldout(saved[arm.name])
    for arm in arms:
        if arm.name in metrics:
            with ends_alone(arm, failures):
                _finish(group, arm, metrics[arm.name], {})


def _tune(group: Group, arm: LockstepRun) -> None:
    """Score a saved SAE on what follows its training, and move it to its place."""
    sae, *_ = saved_saes(arm.unfinished, arm.setup.sae_config.device)
    unseen = group.unseen[arm.name]
    (metrics,) = heldout_metrics([sae], AtHand(unseen), sum(map(len, unseen)))
    found = {f"{TUNING}/{name}": value for name, value in metrics.items()}
    _finish(group, arm, [], found)


def _finish(
    group: Group,
    arm: LockstepRun,
    heldout: Sequence[Mapping[str, float]],
    found: Mapping[str, float],
) -> None:
    """Write what is known of a saved SAE, and move it to its place."""
    write_summary(arm.unfinished, heldout, found, time.perf_counter() - group.started)
    (arm.unfinished / TRAINING_SUMMARY).unlink(missing_ok=True)
    if arm.made_from is not None:
        told = {**arm.made_from, "machines": group.machines}
        write(arm.unfinished / ORIGIN, json.dumps(told, indent=1) + "\n")
    if arm.recipe is not None:
        write_recipe(arm.unfinished / RECIPE, arm.recipe, arm.plan.files)
    durable(arm.unfinished)
    os.replace(arm.unfinished, arm.folder)
    durable(arm.folder, [])
