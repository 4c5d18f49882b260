"""SAELens' trainer with events: a subclass that overrides public seams only."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any, ClassVar

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.activation_scaler import ActivationWhitening
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_plugins.base.code import TRAINING
from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import durable
from sae_plugins.base.identity import Fact, of_code
from sae_plugins.base.saelens import ADAM_MOMENTS, hide_in_metadata, not_passed
from sae_plugins.base.seeds import generator
from sae_plugins.framework.accumulate import GradientWindow, decay
from sae_plugins.framework.architectures import architecture, architecture_of
from sae_plugins.framework.counters import COUNTERS, check_counters
from sae_plugins.framework.export import export, exported
from sae_plugins.framework.fast.output import seen
from sae_plugins.framework.fast.precision import matmul_precision
from sae_plugins.framework.fast.step import FastStep, fuse
from sae_plugins.framework.features import Features
from sae_plugins.framework.host import Host, built
from sae_plugins.framework.losses import LOSS_FORMS
from sae_plugins.framework.multipliers import Multipliers
from sae_plugins.framework.profile import FORWARD, Profile
from sae_plugins.framework.resolve import Plan, TrainingSettings
from sae_plugins.framework.returned import by_name, check_loss
from sae_plugins.framework.run import Run
from sae_plugins.framework.steps import in_steps
from sae_plugins.framework.thresholds import (
    HeldOut,
    calibrated,
    check_calibration,
    following,
    unseen,
)
from sae_plugins.resume.checkpoints import Checkpoints
from sae_plugins.resume.origin import ACCEPTED
from sae_plugins.resume.shards import divided
from sae_plugins.resume.state import check_fits

logger = logging.getLogger(__name__)

STOCK_SETTINGS = TrainingSettings()
"""What SAELens does by itself: an update per batch, squared error, no decay, clip at norm 1."""

_NEWER = (
    *("fast_step", "matmul_precision", "weight_decay_form", "calibrate_l0", "calibrate_tokens"),
)
"""Settings that checkpoints of earlier versions do not name, which were as in `STOCK_SETTINGS`."""
_NOT_THE_TRAINING = ("checkpoint_path", "save_final_checkpoint", "logger")
"""Fields of SAELens' trainer config that do not change what is trained."""


class PluginTrainer(SAETrainer[Any, Any]):
    """A `SAETrainer` that calls the events of `plan`'s plugins.

    With no plugins and stock settings it adds nothing: no operation, no memory.
    """

    plan: ClassVar[Plan]
    seed: ClassVar[int]
    checkpoints: ClassVar[Checkpoints | None] = None
    profile: ClassVar[Profile | None] = None
    text: ClassVar[HeldOut | None] = None
    numbers: ClassVar[Iterator[int]]
    shards: ClassVar[int] = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build SAELens' trainer, then attach the plugins to it.

        Raises:
            PluginError: a plugin cannot work on this SAE or is wrong in itself.
        """
        super().__init__(*args, **kwargs)
        self.data_provider = divided(self.data_provider, self.shards, self.seed)
        if self.checkpoints is not None:
            self.checkpoints.check(self)
        settings = self.plan.training
        self.run = Run(self, next(self.numbers))
        self._last_batch: Tensor | None = None
        self.host = Host(
            [
                built(plugin, in_steps(given, self.run.total_steps))
                for plugin, given in self.plan.plugins
            ],
            self.profile,
        )
        self._multipliers = Multipliers(self.host, self.run)
        self._window: GradientWindow | None = None
        self._fast: FastStep | None = None
        self._inert = not self.host.plugins and settings == STOCK_SETTINGS
        if not self._inert:
            self._prepare(settings)
        hide_in_metadata(self.sae)
        if self.profile is not None:
            self.profile.watch(self)
        if self.checkpoints is not None:
            self.checkpoints.joined(self)

    def _prepare(self, settings: TrainingSettings) -> None:
        self.sae.cfg.metadata.sae_plugins = self.plan.provenance()
        if settings.loss_form is not None:
            self.sae.mse_loss_fn = LOSS_FORMS[settings.loss_form]
        clips = settings.clip != STOCK_SETTINGS.clip or self.host.listens("project")
        if settings.accumulate > 1 or clips:
            self._window = GradientWindow(self.sae.parameters(), settings.accumulate, settings.clip)
        if settings.following_tokens:
            check_calibration(architecture(self.sae.cfg.architecture()), settings.calibrate_l0)
        if settings.fast_step:
            self._fast = FastStep(self.sae)
            fuse(self.optimizer)
        self._ends_window = True
        self._activation_scale: float | None = None
        self.optimizer.register_step_pre_hook(self._before_update)
        self.optimizer.register_step_post_hook(self._after_update)
        if settings.following_tokens or self.host.listens("export_inference"):
            # bound to the SAE, so that a deep copy of it exports itself; SAELens' checkpoints,
            # which are to look at, would else lack what plugins add
            keep = settings.calibrate_l0 is not None
            self.sae.save_inference_model = MethodType(
                partial(export, self.host, self.run, keep), self.sae
            )
            self.sae.save_model = self.sae.save_inference_model
        if self.host.plugins:
            self._attach_plugins()

    def _attach_plugins(self) -> None:
        self.plan.check(architecture_of(self.sae))
        self.run.features = Features(self)
        for plugin in self.host.plugins:
            plugin.rng = generator(self.seed, plugin.name)
        with torch.no_grad():
            self.host.notify("attached", run=self.run)
        self.run.features.check_held()

    # -- SAELens' public seams -----------------------------------------------------------------

    def step(self, batch: Tensor) -> TrainStepOutput:
        """Train on one batch [B, d_in] of activations, calling the events."""
        if self.checkpoints is not None:
            self.checkpoints.taken(batch)
        if self._inert and self.profile is None:
            return super().step(batch)
        run = self.run
        run.metrics, run.updated = {}, False
        self._activation_scale = self.activation_scaler.scaling_factor
        is_last = self.n_training_samples + batch.shape[0] >= self.cfg.total_training_samples
        self._last_batch = batch if is_last else None
        self._ends_window = self._window is None or (
            self._window.batches + 1 >= self._window.size or is_last
        )
        fired_before = self.act_freq_scores.clone() if self.host.plugins else None
        with (
            self._events_around_forward(),
            matmul_precision(self.plan.training.matmul_precision),
        ):
            output = super().step(batch)
        if fired_before is None:
            return output
        run.firing_counts = self.act_freq_scores - fired_before
        with torch.no_grad():
            self.host.notify("step_ended", run=run, output=seen(output))
            run.features.check_held()
            if run.updated:
                for change in run.features.carry_out():
                    self.host.notify("features_changed", run=run, change=change)
        output.metrics.update(run.metrics)
        return output

    def maybe_reset_sparsity(self) -> dict[str, Any]:
        """SAELens calls this between two steps, when nothing is under way."""
        if self.checkpoints is not None:
            self.checkpoints.step_begins(self)
        return super().maybe_reset_sparsity()

    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        """Resume from a checkpoint of SAELens' own; refused with plugins, whose state it lacks."""
        observers = all(plugin.observes_only for plugin in self.host.plugins)
        # to calibrate needs no state
        not_calibrated = {n: v for n, v in STOCK_SETTINGS if n.startswith("calibrate")}
        as_stock = self.plan.training.model_copy(update=not_calibrated)
        if not (observers and as_stock == STOCK_SETTINGS):
            raise PluginError(
                f"cannot resume from {checkpoint_path}: SAELens' checkpoints do not hold the state "
                "of plugins and accumulated gradients, so the run would silently differ; resume "
                "from one of sae-plugins' own (sae-plugins train --resume, or in Python "
                "plugins(checkpoints=Checkpoints(..., resume=True)))"
            )
        if self.checkpoints is not None:
            if self.checkpoints.saved is not None:
                raise PluginError(
                    f"the run goes on from {self.checkpoints.path}, and would then go back to "
                    f"{checkpoint_path}: set resume_from_checkpoint to None"
                )
            self.checkpoints.read_by_sae_lens(self.data_provider)
        super().load_trainer_state(checkpoint_path)
        self.checkpoint_thresholds = not_passed(self.checkpoint_thresholds, self)

    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        """Save one of SAELens' own, for good: a run that goes on may not come by here again."""
        super().save_checkpoint(checkpoint_name, base_path, wandb_aliases)
        folder = base_path or self.cfg.checkpoint_path
        if self.checkpoints is not None and folder is not None:
            durable(Path(folder) / checkpoint_name)

    def set_final_sae_metadata(self) -> None:
        """Record SAELens' closing statistics, then tell the plugins that training has ended."""
        super().set_final_sae_metadata()
        if self._fast is not None:
            self._fast.leave()
        batches = self._unseen()
        if self.checkpoints is not None:
            self.checkpoints.ended()
            if self.checkpoints.accepted:
                metadata = self.sae.cfg.metadata
                known = metadata.sae_plugins or self.plan.provenance()
                metadata.sae_plugins = known | {ACCEPTED: self.checkpoints.accepted}
        if self.host.plugins:
            with torch.no_grad():
                self.host.notify(
                    "training_ended", run=self.run, activation_scale=self._activation_scale
                )
        if batches:
            self._calibrate(batches)

    def _calibrate(self, batches: list[Tensor]) -> None:
        """Find the thresholds of the SAE that will be saved, as it would be without them."""
        wanted = self.plan.training.calibrate_l0
        l0 = self.sae.cfg.k if wanted is None else wanted
        with TemporaryDirectory(prefix="sae-plugins-") as scratch, torch.no_grad():
            weights, config = exported(self.host, self.run, self.sae, Path(scratch))
        self.run.calibration = calibrated(weights, config, batches, l0)

    def _unseen(self) -> list[Tensor]:
        """What sets thresholds: held-out text, for an L0 that the run was told; else what follows.

        What follows is of the text that is trained on, whose L0 may be another.
        """
        settings = self.plan.training
        if not settings.following_tokens:
            return []
        held: list[Tensor] = []
        if settings.calibrate_l0 is not None:
            # a model that runs ahead in a thread has hooks on it
            paused = getattr(self.data_provider, "paused", nullcontext)
            with paused():
                held = unseen(self.text, settings.following_tokens)
        count = -(-settings.following_tokens // self.cfg.train_batch_size_samples)
        return held or following(self.data_provider, count, self._last_batch)

    # -- the whole state -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, between two steps."""
        schedulers = self.coefficient_schedulers.items()
        whitening = self.activation_scaler.whitening
        fast = {} if self._fast is None else {"fast": self._fast.state_dict()}
        return {
            **fast,
            **self._multipliers.state_dict(),
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "coefficient_schedulers": {name: item.state_dict() for name, item in schedulers},
            "scaling_factor": self.activation_scaler.scaling_factor,
            "whitening": None if whitening is None else vars(whitening),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "run": {"updates": self.run.updates, "summary": self.run.summary},
            "window": self._window and self._window.state_dict(),
            "features": self.run.features.state_dict() if self.host.plugins else None,
            "plugins": {plugin.name: plugin.state_dict() for plugin in self.host.plugins},
        }

    def replicated(self) -> dict[str, Any]:
        """The part of the state that must be the same on all ranks: without what only observes."""
        acting = {p.name: p.state_dict() for p in self.host.plugins if not p.observes_only}
        return {**self.state_dict(), "run": {"updates": self.run.updates}, "plugins": acting}

    def state_of_plugins(self) -> dict[str, Any]:
        """The part of the state that others have written, and that may be anything."""
        plugins = {plugin.name: plugin.state_dict() for plugin in self.host.plugins}
        return {"run": {"summary": self.run.summary}, "plugins": plugins}

    def facts(self) -> dict[str, Any]:
        """What must be the same for a run to go on, by name."""
        config, sae = dataclasses.asdict(self.cfg), self.sae.cfg.to_dict()
        return {
            "plugins": {
                plugin.name: {
                    "place": place,
                    "state_version": plugin.state_version,
                    **options.model_dump(mode="json"),
                }
                for place, (plugin, options) in enumerate(self.plan.plugins)
            },
            "training": {
                name: value
                for name, value in self.plan.training.model_dump(mode="json").items()
                if name not in _NEWER or value != getattr(STOCK_SETTINGS, name)
            },
            "seed": self.seed,
            **({"data_shards": self.shards} if self.shards > 1 else {}),
            "sae": {name: value for name, value in sae.items() if name != "metadata"},
            "trainer": {n: value for n, value in config.items() if n not in _NOT_THE_TRAINING},
        }

    def made_from(self) -> dict[str, Fact | None]:
        """The code that can change what is trained, the plugins' own included."""
        acting = [plugin for plugin, _ in self.plan.plugins if not plugin.observes_only]
        return {"code": of_code(TRAINING, acting)}

    def versions(self) -> dict[str, str]:
        """The plugins' versions, by plugin."""
        return {plugin["name"]: plugin["version"] for plugin in self.plan.provenance()["plugins"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a trainer that was built in the same way where another one was.

        Raises:
            ValueError: the other one was not.
        """
        check_fits(state, {**self.state_dict(), "plugins": {}})
        check_counters(state, self.cfg)
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._check_moments()
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        for name, scheduler in self.coefficient_schedulers.items():
            scheduler.load_state_dict(state["coefficient_schedulers"][name])
        self.activation_scaler.scaling_factor = state["scaling_factor"]
        if state["whitening"] is not None:
            self.activation_scaler.whitening = ActivationWhitening(**state["whitening"])
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        self.run.updates, self.run.summary = state["run"]["updates"], state["run"]["summary"]
        if self._window is not None:
            self._window.load_state_dict(state["window"])
        if self._fast is not None:
            self._fast.load_state_dict(state["fast"])
        self._multipliers.load_state_dict(state)
        if self.host.plugins:
            self.run.features.load_state_dict(state["features"])
        for plugin in self.host.plugins:
            plugin.load_state_dict(state["plugins"][plugin.name])

    def _check_moments(self) -> None:
        """Adam begins with no state, and has the same for every parameter from its first update."""
        parameters, state = list(self.sae.parameters()), self.optimizer.state
        for parameter in parameters if state else ():
            moments = dict.fromkeys(ADAM_MOMENTS, parameter)
            check_fits(state.get(parameter), {**moments, "step": torch.zeros(())}, "Adam")

    def is_finite(self) -> bool:
        """Whether no weight and no gradient that is held is NaN or infinite."""
        held = [] if self._window is None else self._window.state_dict()["held"]
        tensors = [*self.sae.parameters(), *(gradient for gradient in held if gradient is not None)]
        # NaN where any element is, and 14 times as fast as asking each
        return all(bool(torch.stack(tensor.aminmax()).isfinite().all()) for tensor in tensors)

    # -- around the forward pass ---------------------------------------------------------------

    @contextmanager
    def _events_around_forward(self) -> Iterator[None]:
        """Swap the SAE's forward pass, compiled or not, for one that calls events around it."""
        listens = self.host.listens("before_forward", "after_forward", "extra_losses")
        if not listens and self.profile is None:
            yield
            return
        swapped = vars(self.sae).get("training_forward_pass")
        forward: Any = self.sae.training_forward_pass
        if self.profile is not None:
            forward = self.profile.timed(FORWARD, forward)

        def with_events(step_input: TrainStepInput) -> TrainStepOutput:
            with self._plain_precision():
                self._multipliers.before_forward(step_input)
            output: TrainStepOutput = forward(step_input=step_input)
            with self._plain_precision():
                self._multipliers.after_forward(step_input, output)
                self._add_losses(step_input, output)
            return output

        self.sae.training_forward_pass = with_events
        try:
            yield
        finally:
            if swapped is None:
                del self.sae.training_forward_pass
            else:
                self.sae.training_forward_pass = swapped

    def _plain_precision(self) -> torch.autocast:
        return torch.autocast(self.sae.device.type, enabled=False)

    def _add_losses(self, step_input: TrainStepInput, output: TrainStepOutput) -> None:
        for plugin, terms in self.host.call(
            "extra_losses", run=self.run, step_input=step_input, output=seen(output)
        ):
            for term, value in by_name(plugin, "extra_losses", terms):
                check_loss(plugin, term, value)
                output.losses[f"{plugin.name}/{term}"] = value
                output.loss = output.loss + value

    # -- around the optimizer's step -----------------------------------------------------------

    @torch.no_grad()
    def _before_update(self, *_: Any) -> None:
        if self._window is not None:
            self._window.batches += 1
            if self._ends_window:
                self._window.release(self._project)
        if not self._ends_window:
            return
        settings = self.plan.training
        if settings.weight_decay:
            decay(self.optimizer, settings.weight_decay, settings.weight_decay_form)
            if settings.weight_decay_form == "coupled":
                self._project()
        self.host.notify("before_update", run=self.run)

    def _project(self) -> None:
        decoder = self.sae.W_dec
        if decoder.grad is not None:
            self.host.notify("project", run=self.run, gradient=decoder.grad, rows=decoder.detach())

    @torch.no_grad()
    def _after_update(self, *_: Any) -> None:
        if self._ends_window:
            self.run.updates += 1
            self.run.updated = True
            self.host.notify("after_update", run=self.run)
