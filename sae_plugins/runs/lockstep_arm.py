"""One of several SAEs that train in lockstep: what it is made of, and how it trains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.machine_faults import is_of_machine
from sae_plugins.base.patches import replaced
from sae_plugins.base.ranks import RankError
from sae_plugins.base.saelens import interruption
from sae_plugins.framework import attach
from sae_plugins.framework.resolve import Plan
from sae_plugins.runs.folder import remove_run
from sae_plugins.runs.recorder import Recorder
from sae_plugins.runs.setup import Setup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LockstepRun:
    """One SAE to train.

    Attributes:
        name: tells it from the other arms.
        setup: what it is trained on, and with which settings of SAELens; its seed is the arm's.
        folder: where the SAE will lie. It must not be there, and is once all its files are.
        plan: the plugins; a recorder is added.
        recipe: what its `run.yaml` says; None for no such file.
        made_from: what its `made_from.json` says besides machines; None for no such file.
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

    @property
    def observed(self) -> Plan:
        """The plugins, and the recorder."""
        own = {"output_path": str(self.unfinished), **({} if self.figures else {"figures": False})}
        return self.plan.observed_by(Recorder, **own)


class HeldOut:
    """A setup's text that is held out for other things than scores, read once for all arms."""

    def __init__(self, setup: Setup) -> None:
        """Read nothing yet."""
        self.unseen = cache(setup.unseen)


class Training:
    """An arm's trainer.

    Attributes:
        following: batches after its last one, which set the thresholds of the SAE.
        is_saved: whether there is nothing left to do.
    """

    trainer: Any
    """A `PluginTrainer`, built as SAELens' own."""

    def __init__(self, arm: LockstepRun, text: HeldOut, unseen: dict[str, list[Tensor]]) -> None:
        """Draw the SAE's weights and attach the plugins; `unseen` gets what a tuning arm needs."""
        self.arm, self.unseen = arm, unseen
        remove_run(arm.unfinished)
        seed, self.text = arm.setup.settings.seed, text
        shards = arm.setup.settings.data_shards  # of the stream, which is whole already
        with attach.plugins(arm.observed, seed=seed, text=text, data_shards=shards):
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

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of its training depends on, between two steps."""
        return {"trainer": self.trainer.state_dict(), "following": self.following}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put an arm that was built in the same way where another one was."""
        config = self.trainer.cfg
        # a trainer that is over, and has only to read what follows, would be refused
        longer = config.total_training_samples + config.train_batch_size_samples
        with replaced(config, total_training_samples=longer):
            self.trainer.load_state_dict(state["trainer"])
        self.following = state["following"]

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
def ends_alone(arm: LockstepRun, failures: dict[str, Exception]) -> Iterator[None]:
    """Let an exception end this arm only, unless all arms have to end."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (interruption(), RankError)) or is_of_machine(error):
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
