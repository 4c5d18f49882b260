"""What an event sees of the training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_plugins.framework.architectures import Architecture, architecture
from sae_plugins.framework.features import Features

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer
    from torch import Tensor
    from torch.optim import Optimizer

    from sae_plugins.framework.calibration import Calibration


class Run:
    """A narrow view of one trainer, given to every event.

    Attributes:
        number: of this trainer among those that were built within one `plugins` context, from 1.
        features: the feature axis: track per-feature state, request changes of features.
        metrics: what plugins logged during this step, by name: callables are not called yet.
        summary: what plugins have to say at the end, by name.
        updates: optimizer updates so far.
        updated: whether this step made an update, so ended an accumulation window; from
            `after_update` on.
        firing_counts: [d_sae], on how many of this step's tokens each feature fired; from
            `step_ended` on.
        calibration: the thresholds that the saved SAE gets; None before the training has ended, or
            where nothing is calibrated.
    """

    features: Features
    firing_counts: Tensor

    def __init__(self, trainer: SAETrainer[Any, Any], number: int) -> None:
        """View `trainer`; the framework fills in the rest."""
        self._trainer = trainer
        self.number = number
        self.metrics: dict[str, Any] = {}
        self.summary: dict[str, float | int | None] = {}
        self.updates = 0
        self.updated = False
        self.calibration: Calibration | None = None

    @property
    def sae(self) -> TrainingSAE[Any]:
        """The SAE in training."""
        sae: TrainingSAE[Any] = self._trainer.sae
        return sae

    @property
    def optimizer(self) -> Optimizer:
        """SAELens' Adam."""
        return self._trainer.optimizer

    @property
    def architecture(self) -> Architecture:
        """What the framework knows about the SAE's architecture."""
        return architecture(self.sae.cfg.architecture())

    @property
    def step(self) -> int:
        """The training step (batch) in progress, counted from 1."""
        return self._trainer.n_training_steps + 1

    @property
    def total_steps(self) -> int:
        """Training steps of the whole run, a last and smaller batch's included."""
        cfg = self._trainer.cfg
        return max(1, -(-cfg.total_training_samples // cfg.train_batch_size_samples))

    @property
    def warm_up_steps(self) -> int:
        """Training steps over which the learning rate rises at the start."""
        return self._trainer.cfg.lr_warm_up_steps

    @property
    def samples(self) -> int:
        """Tokens that the SAE has seen, this step's included."""
        return self._trainer.n_training_samples

    @property
    def logs_to_wandb(self) -> bool:
        """Whether SAELens logs the run to Weights & Biases."""
        return bool(self._trainer.cfg.logger.log_to_wandb)

    def plugin(self, name: str) -> Any:
        """Another plugin of this run: one that `requires` or `after` names, for what it keeps.

        Raises:
            KeyError: it is not part of the run.
        """
        trainer: Any = self._trainer  # with a host, where there are plugins
        return {plugin.name: plugin for plugin in trainer.host.plugins}[name]

    def metrics_of(self, output: Any) -> dict[str, Any]:
        """SAELens' own training metrics of this step's output, as floats; forces a GPU sync."""
        return self._trainer.build_train_step_log_dict(output, self.samples)

    def log(self, name: str, value: Any) -> None:
        """Log a metric of this step; a tensor or a callable is only evaluated if it is written."""
        self.metrics[name] = value

    def summarise(self, name: str, value: float | int | None) -> None:
        """Add a line to the closing summary."""
        self.summary[name] = value
