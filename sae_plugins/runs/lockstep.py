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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import durable, write
from sae_plugins.base.ranks import RankError, ranks
from sae_plugins.base.saelens import interruption, no_bars
from sae_plugins.base.seeds import isolated_random_state, seed_data
from sae_plugins.framework import attach
from sae_plugins.framework.resolve import Plan
from sae_plugins.runs.folder import ORIGIN, RECIPE, TRAINING_SUMMARY, remove_run
from sae_plugins.runs.heldout import AtHand, heldout_metrics
from sae_plugins.runs.memory import beside_saes, bytes_in_training, memory_of
from sae_plugins.runs.recipe_file import write_recipe
from sae_plugins.runs.recorder import Recorder
from sae_plugins.runs.setup import Setup, quiet
from sae_plugins.runs.stream_key import stream_key
from sae_plugins.runs.summary import TUNING, saved_saes, write_summary

logger = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.5
"""What SAEs in training may take of the memory that the language model and its buffer leave."""
_FLAGS = {"unseen_tokens": "--calibrate_l0 or --calibrate_tokens"}
"""What users call settings that are no flags."""
_ALONE = (
    *("n_checkpoints", "save_final_checkpoint", "resume_from_checkpoint", "prefetch_llm_batches"),
)


@dataclass(frozen=True)
class LockstepRun:
    """One SAE to train.

    Attributes:
        name: tells it from the other arms.
        setup: what it is trained on, and with which settings of SAELens; its seed is the arm's.
        folder: where the SAE will lie. It must not be there, and is once all its files are.
        plan: the plugins; a recorder is added.
        recipe: what its `run.yaml` says; None for no such file.
        made_from: what its `made_from.json` says; None for no such file.
        figures: whether the recorder draws some, which costs a second.
        untrained: save the SAE as it was drawn, a control.
        tuning_tokens: score it on so many tokens that follow its training, `TUNING` in its summary,
            and not on the text that is held out: it serves to choose a setting, and must not see
            what others are scored on.
    """

    name: str
    setup: Setup
    folder: Path
    plan: Plan
    recipe: Mapping[str, Any] | None = None
    made_from: Mapping[str, Any] | None = None
    figures: bool = True
    untrained: bool = False
    tuning_tokens: int = 0

    @property
    def following_tokens(self) -> int:
        """Tokens that are read after the last one of its training, unless held-out ones serve."""
        held = self.setup.settings.unseen_tokens and not self.setup.settings.is_synthetic
        return 0 if held else max(self.plan.training.following_tokens, self.tuning_tokens)

    @property
    def unfinished(self) -> Path:
        """Where its files are until all of them are there."""
        return self.folder.with_name(self.folder.name + ".unfinished")


def train(
    arms: Sequence[LockstepRun],
    progress: Callable[[int, int], None] = lambda done, total: None,
    finished: Callable[[LockstepRun], None] = lambda arm: None,
    processes: int = 1,
) -> dict[str, Exception]:
    """Train arms that see the same batches, and score them on the same held-out text.

    As many as fit into memory train at once; the others follow, on the same batches again. Several
    ranks share the language model's work and the arms: each trains some of them on all batches.

    Args:
        arms: they have equal `stream_key`s; their lengths of training may differ.
        progress: told after each batch how many batches are done, and how many there are in all.
        finished: told of each arm whose folder is there, before the next ones that fit train.
        processes: how many train on the device at once, each with a language model of its own.

    Returns:
        What ended this rank's arms that failed, by name. The folder of every other one of its arms
        is there.

    Raises:
        PluginError: the arms cannot be trained in lockstep.
    """
    _check(arms)
    passes = list(_passes(arms, processes))
    lengths = [max(map(_steps, together)) for together in passes]
    failures: dict[str, Exception] = {}
    done = 0
    for together, length in zip(passes, lengths, strict=True):

        def advanced(steps: int, before: int = done) -> None:
            progress(before + steps, sum(lengths))

        try:
            with (
                quiet(),
                no_bars(),
            ):
                failures |= _train(together[0].setup, _own(together), advanced)
        finally:
            for arm in _own(together):
                with suppress(OSError):
                    remove_run(arm.unfinished)
        for arm in _own(together):
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
    setup: Setup, arms: Sequence[LockstepRun], advanced: Callable[[int], None]
) -> dict[str, Exception]:
    """`train`, for arms that fit into memory; `setup` is as all ranks have it."""
    started = time.perf_counter()
    failures: dict[str, Exception] = {}
    unseen: dict[str, list[Tensor]] = {}
    text = _HeldOut(setup)
    running = []
    for arm in arms:
        with _ends_alone(arm, failures):
            running.append(_Training(arm, text, unseen))
    seed_data(setup.settings.seed)
    ranks().patiently()  # arms take long to build, and to score
    stream = setup.stream()
    scaler = ActivationScaler()
    if ranks().agree(bool(running))[0]:
        scaler = _scaler(setup, stream)
    running = _each(running, failures, lambda training: training.start(replace(scaler)))
    steps = 0
    while ranks().agree(bool(running))[0]:  # all batches are whole, so that all ranks read them
        batch = next(stream, None)
        if batch is None:  # the data end where nothing is left to train on, or an arm fails
            _each(running, failures, lambda training: training.end())
            break
        going = _step(running, batch, failures)
        if len(going) < len(running):
            running = going
            gc.collect()  # trainers, plugins and SAEs know each other
        steps += 1
        advanced(steps)
    setup.tell_skipped()
    left = [arm for arm in arms if arm.name not in failures]
    _score([arm for arm in left if not arm.tuning_tokens], failures, started)
    for arm in left:
        if arm.tuning_tokens:
            with _ends_alone(arm, failures):
                _tune(arm, unseen[arm.name], started)
    return failures


class _HeldOut:
    """A setup's text that is held out for other things than scores, read once for all arms."""

    def __init__(self, setup: Setup) -> None:
        """Read nothing yet."""
        self.unseen = cache(setup.unseen)


class _Training:
    """An arm's trainer.

    Attributes:
        following: batches after its last one, which set the thresholds of the SAE.
        is_saved: whether there is nothing left to do.
    """

    trainer: Any
    """A `PluginTrainer`, built as SAELens' own."""

    def __init__(self, arm: LockstepRun, text: _HeldOut, unseen: dict[str, list[Tensor]]) -> None:
        """Draw the SAE's weights and attach the plugins; `unseen` gets what a tuning arm needs."""
        self.arm, self.unseen = arm, unseen
        remove_run(arm.unfinished)
        own = {"output_path": str(arm.unfinished), **({} if arm.figures else {"figures": False})}
        seed, self.text = arm.setup.settings.seed, text
        shards = arm.setup.settings.data_shards  # of the stream, which is whole already
        plan = arm.plan.observed_by(Recorder, **own)
        with attach.plugins(plan, seed=seed, text=text, data_shards=shards):
            self.trainer, self.save = arm.setup.trainer(arm.folder)
        if arm.untrained:
            self.trainer.cfg.total_training_samples = 0
        self.following: list[Tensor] = []
        self.is_saved = False

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train on."""
        total = self.trainer.cfg.total_training_samples
        return bool(self.trainer.n_training_samples >= total)

    def start(self, scaler: ActivationScaler) -> None:
        """Normalise activations like this from now on."""
        self.trainer.activation_scaler = scaler
        self._end_if_over()

    def step(self, batch: Tensor, as_it_came: Tensor) -> None:
        """Do with a batch what SAELens' `fit` does; after the last one, save the SAE.

        What comes after that is kept, once for all arms: plugins may change `batch` alone.
        """
        if self.is_over:
            self.following.append(as_it_came)
        else:
            self.trainer.maybe_reset_sparsity()
            self.trainer.step(batch)
            self.trainer.n_training_steps += 1
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.is_over and sum(map(len, self.following)) >= self.arm.following_tokens:
            self.end()

    def end(self) -> None:
        """Save the SAE.

        Raises:
            PluginError: its training is not over.
        """
        if not self.is_over:
            raise PluginError(
                f"the data end after {self.trainer.n_training_samples} of the "
                f"{self.trainer.cfg.total_training_samples} tokens: lower --training_tokens"
            )
        self.trainer.data_provider = iter(self.following)
        self.trainer.fit()
        if self.arm.tuning_tokens:
            tokens = self.arm.tuning_tokens
            self.unseen[self.arm.name] = self.following or self.text.unseen(tokens)
        self.following, self.is_saved = [], True
        untrained = not self.trainer.n_training_steps
        self.save(self.arm.unfinished, None if untrained else self.trainer.log_feature_sparsity)


@contextmanager
def _ends_alone(arm: LockstepRun, failures: dict[str, Exception]) -> Iterator[None]:
    """Let an exception end this arm only."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (interruption(), RankError)):
            raise
        logger.error("arm %s failed: %s: %s", arm.name, type(error).__name__, error)
        logger.debug("where arm %s failed:", arm.name, exc_info=True)
        failures[arm.name] = without_frames(error)


def without_frames(error: Exception) -> Exception:
    """An error to be kept, whose frames would keep a trainer or a language model."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


def _scaler(setup: Setup, stream: Iterator[Tensor]) -> ActivationScaler:
    """What normalises the activations, from as many batches as SAELens' `fit` takes for it."""
    scaler, config = ActivationScaler(), setup.sae_config
    batches = setup.config(None).to_sae_trainer_config().n_batches_for_norm_estimate
    if config.normalize_activations == "expected_average_only_in":
        scaler.estimate_scaling_factor(config.d_in, stream, batches)
    elif config.normalize_activations == "covariance_whitening":
        scaler.estimate_whitening(config.d_in, stream, batches)
    return scaler


def _step(
    running: Sequence[_Training], batch: Tensor, failures: dict[str, Exception]
) -> list[_Training]:
    """Give each arm the batch as it came, whatever those before it did to it."""
    if not running:
        return []
    batch = batch.to(running[0].trainer.sae.device)
    as_it_came = batch.clone()

    def step(training: _Training) -> None:
        batch.copy_(as_it_came)
        training.step(batch, as_it_came)

    with isolated_random_state():  # which the stream is drawn from
        return _each(running, failures, step)


def _each(
    running: Sequence[_Training],
    failures: dict[str, Exception],
    act: Callable[[_Training], None],
) -> list[_Training]:
    """Have all arms do something; those that go on."""
    for training in running:
        with _ends_alone(training.arm, failures):
            act(training)
    return [t for t in running if not t.is_saved and t.arm.name not in failures]


def _score(arms: Sequence[LockstepRun], failures: dict[str, Exception], started: float) -> None:
    """Score the saved SAEs on the same text, and move them to their places."""
    saved: dict[str, list[SAE[Any]]] = {}
    for arm in arms:
        with _ends_alone(arm, failures):
            saved[arm.name] = saved_saes(arm.unfinished, arm.setup.sae_config.device)
    metrics: dict[str, list[dict[str, float]]] = {}
    try:
        found = iter(arms[0].setup.heldout([*chain(*saved.values())]) if arms else [])
        metrics = {name: [next(found) for _ in saes] for name, saes in saved.items()}
    except Exception:  # of one of them, which cannot be told from the others together
        for arm in arms:
            with _ends_alone(arm, failures):
                if arm.name in saved:
                    metrics[arm.name] = arm.setup.heldout(saved[arm.name])
    seconds = time.perf_counter() - started
    for arm in arms:
        if arm.name in metrics:
            with _ends_alone(arm, failures):
                _finish(arm, metrics[arm.name], {}, seconds)


def _tune(arm: LockstepRun, unseen: Sequence[Tensor], started: float) -> None:
    """Score a saved SAE on what follows its training, and move it to its place."""
    sae, *_ = saved_saes(arm.unfinished, arm.setup.sae_config.device)
    (metrics,) = heldout_metrics([sae], AtHand(unseen), sum(map(len, unseen)))
    found = {f"{TUNING}/{name}": value for name, value in metrics.items()}
    _finish(arm, [], found, time.perf_counter() - started)


def _finish(
    arm: LockstepRun,
    heldout: Sequence[Mapping[str, float]],
    found: Mapping[str, float],
    seconds: float,
) -> None:
    """Write what is known of a saved SAE, and move it to its place."""
    write_summary(arm.unfinished, heldout, found, seconds)
    (arm.unfinished / TRAINING_SUMMARY).unlink(missing_ok=True)
    if arm.made_from is not None:
        write(arm.unfinished / ORIGIN, json.dumps(arm.made_from, indent=1) + "\n")
    if arm.recipe is not None:
        write_recipe(arm.unfinished / RECIPE, arm.recipe, arm.plan.files)
    durable(arm.unfinished)
    os.replace(arm.unfinished, arm.folder)
    durable(arm.folder, [])
