"""A run's first steps, made to see what all of them take: the run itself, which nobody keeps.

It is the run in everything but its mixing buffer and its estimate of the activations' scale, which
are small here: to fill the buffer may take longer than anybody waits. It stops itself after a few
steps. Whatever it writes is in a scratch folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import PluginError
from sae_plugins.base.saelens import ESTIMATED, interruption, no_bars, trained_positions
from sae_plugins.framework.attach import plugins
from sae_plugins.framework.profile import BATCHES, Part, Profile, Spent
from sae_plugins.framework.resolve import Plan
from sae_plugins.resume.checkpoints import COMPILED_AND_AHEAD, Checkpoints
from sae_plugins.runs.recorder import Recorder
from sae_plugins.runs.setup import SAELensSettings, Setup

if TYPE_CHECKING:
    from contextlib import ExitStack

    from sae_plugins.framework.run import Run

WARM_UP, MEASURED = 3, 12
"""Steps before the clock counts, and steps that are measured."""
PATIENCE = 60.0
"""Seconds after which one measured step is enough."""
_AT_ONCE = ("mixing buffer", "synthetic model", "waiting for those read ahead")
"""Parts of making batches that take their time per token; the others per batch of the model."""
_NOT_OF_STEPS = ("checkpoints", "evaluations")


class UnwrittenCheckpoints(Checkpoints):
    """The checkpoints that a run would go on from, which are read, and not written."""

    def write(self) -> None:
        """Do nothing."""

    def _take_folder(self, stack: ExitStack) -> None:
        if self.folder.is_dir():
            super()._take_folder(stack)


@dataclass(frozen=True)
class Speed:
    """How fast a run is, by a few steps of it.

    Attributes:
        steps: how many were measured.
        batch: seconds per token to make batches, by what they are for.
        step: seconds per step of everything else, by what they are for.
        held: bytes of the tensors that each plugin keeps.
    """

    steps: int
    batch: Mapping[str, float]
    step: Mapping[str, float]
    held: Mapping[str, int]

    def per_step(self, tokens: int) -> dict[str, float]:
        """Seconds of a step on so many tokens, by what they are for."""
        return {**{what: each * tokens for what, each in self.batch.items()}, **self.step}

    def seconds(self, steps: float, tokens: float) -> float:
        """About how long so many steps take, and batches of so many tokens."""
        return steps * sum(self.step.values()) + tokens * sum(self.batch.values())


@dataclass(frozen=True)
class _Mark:
    """What was measured until the end of a step, and the tokens until then."""

    spent: Mapping[Part, Spent]
    tokens: int


def probe(
    setup: Setup,
    plan: Plan,
    scratch: Path,
    checkpoints: Checkpoints,
) -> Speed | None:
    """Run a few steps, from the place of the checkpoints.

    Args:
        setup: the run's.
        plan: its plugins.
        scratch: an empty folder for what the run writes.
        checkpoints: of the run that goes on, or in an empty folder.

    Returns:
        None where fewer than two steps are left.

    Raises:
        PluginError: the run cannot start.
    """
    runner = setup.settings.runner
    if checkpoints.rows and runner.get("prefetch_llm_batches") and runner.get("compile_sae"):
        raise PluginError(COMPILED_AND_AHEAD)  # the probe reads nothing ahead
    profile, marks = Profile(), list[_Mark]()
    if checkpoints.saved is not None:
        checkpoints.saved["stream"] = None  # the rows of a larger buffer

    class Enough(interruption()):  # type: ignore[misc]
        """Raised where the run is interrupted, which it answers by ending at once."""

    class Watched(Recorder):
        def show(self, run: Run) -> None:
            marks.append(_Mark(profile.measured(), run.samples))
            enough = len(marks) >= WARM_UP + MEASURED or run.step >= run.total_steps
            if enough or (len(marks) > 1 and profile.seconds > PATIENCE):
                profile.count_held()
                raise Enough

    small = setup.sharing(_smaller(setup, is_resumed=checkpoints.saved is not None))
    observed = plan.observed_by(Watched, output_path=str(scratch))
    seed = setup.settings.seed
    try:
        with plugins(observed, seed=seed, checkpoints=checkpoints, profile=profile), no_bars():
            small.prepare(scratch)()
    except Enough:
        pass
    except interruption() as error:
        raise KeyboardInterrupt from error
    return _speed(marks, _rows_of_a_batch(setup), profile.held) if len(marks) > 1 else None


def check_place(setup: Setup, plan: Plan, scratch: Path, checkpoints: Checkpoints) -> None:
    """Build the training of a run that goes on, and put it where it is, as a real start does.

    Raises:
        StateError: it cannot go on from there.
    """
    observed = plan.observed_by(Recorder, output_path=str(scratch))
    with plugins(observed, seed=setup.settings.seed, checkpoints=checkpoints):
        trainer: Any
        trainer, _ = setup.trainer(scratch)
        trainer.data_provider = checkpoints.follow(setup.stream())
        checkpoints.read_by_sae_lens(trainer.data_provider)
        checkpoints.step_begins(trainer)


def _smaller(setup: Setup, is_resumed: bool) -> SAELensSettings:
    """The settings of a run that begins soon, and tells nobody."""
    settings, config = setup.settings, setup.config(None)
    runner = {name: value for name, value in settings.runner.items() if name != "checkpoint_path"}
    if not settings.is_synthetic:
        contexts = -(-2 * config.train_batch_size_tokens // _positions(config))
        shared = -(-contexts // settings.data_shards) * settings.data_shards
        runner["n_batches_in_buffer"] = min(config.n_batches_in_buffer, shared)
        runner["prefetch_llm_batches"] = False  # so that each part is measured
    if not is_resumed:  # which has its scale
        runner["n_batches_for_norm_estimate"] = min(2, config.n_batches_for_norm_estimate)
    logger = {**settings.logger, "log_to_wandb": False}
    # what is kept of activations stays as it is
    return replace(settings, runner=runner, logger=logger, activation_cache=None)


def tokens_before(setup: Setup) -> int:
    """Tokens of a new run that are made and not trained on: its buffer stays filled in part.

    Activations whose scale is estimated are among them.
    """
    config, ahead = setup.config(None), 0
    if not setup.settings.is_synthetic:
        buffer = config.n_batches_in_buffer * _positions(config)
        ahead = int(buffer * config.activations_mixing_fraction)
    if setup.sae_config.normalize_activations in ESTIMATED:
        fields = setup.settings.runner
        batch = fields.get("train_batch_size_tokens", 4096)
        ahead += config.n_batches_for_norm_estimate * batch
    return ahead


def _positions(config: Any) -> int:
    """Tokens of a prompt that are trained on."""
    return trained_positions(config.context_size, config.seqpos_slice)


def _rows_of_a_batch(setup: Setup) -> int:
    """Tokens in a batch of the language model."""
    if setup.settings.is_synthetic:
        return 1
    config = setup.config(None)
    return int(config.store_batch_size_prompts * _positions(config))


def _speed(marks: Sequence[_Mark], rows: int, held: Mapping[str, int]) -> Speed:
    """What lies between the end of the warm-up and the last step; `rows` are a model's batch."""
    last, first = marks[-1], marks[min(WARM_UP, len(marks) - 1) - 1]
    steps, tokens = len(marks) - 1 - marks.index(first), last.tokens - first.tokens
    batch: dict[str, float] = {}
    step: dict[str, float] = {}
    for (part, detail), until in last.spent.items():
        since = first.spent.get((part, detail), Spent())
        seconds = (until.nanoseconds - since.nanoseconds) / 1e9
        if part in _NOT_OF_STEPS:
            continue
        if part != BATCHES:
            step[part] = step.get(part, 0.0) + seconds / steps
        elif detail in _AT_ONCE:
            batch[detail] = seconds / tokens
        else:  # a large batch may come before the warm-up ends, and serve all steps
            again = until.calls > since.calls
            calls = until.calls - since.calls if again else until.calls
            batch[detail] = (seconds if again else until.nanoseconds / 1e9) / (calls * rows)
    return Speed(steps, batch, step, held)
