"""Thresholds for an SAE that was trained without them: what thresholds in training must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.mechanisms.activation_threshold import (
    folded_scale,
    inexpressible,
    raise_thresholds,
    refuse_whitening,
)

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run


class PostHocThreshold(Plugin):
    """A control: train without thresholds, save the SAE with one per feature.

    The threshold is a share of the feature's mean activation where it is active. Training is left
    alone; only the saved SAE has the thresholds, and so the scores on held-out text.
    """

    name = "post-hoc-threshold"

    class Options(Plugin.Options):
        """The thresholds."""

        share: float = Field(
            0.3, ge=0, lt=10, description="threshold over the feature's mean active activation"
        )
        decay: float = Field(
            0.999, ge=0, lt=1, description="decay of the mean's moving average per step"
        )

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """The inference SAE must be able to hold thresholds."""
        return inexpressible(architecture)

    @hookimpl
    def attached(self, run: Run) -> None:
        """Track each feature's activations and how many are not 0, as moving sums."""
        refuse_whitening(run)
        zeros = torch.zeros(run.features.d_sae, device=run.sae.device)
        self.sums = run.features.track(self, "sums", zeros)
        self.counts = run.features.track(self, "counts", zeros.clone())
        self.scale = 1.0

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Add this step's activations."""
        sums = output.feature_acts.detach().sum(dim=0, dtype=self.sums.dtype)
        self.sums.lerp_(sums, 1 - self.options.decay)
        self.counts.lerp_(run.firing_counts, 1 - self.options.decay)

    @hookimpl
    def training_ended(self, run: Run, activation_scale: float | None) -> None:
        """Follow the activations when a scale is folded into the weights."""
        self.scale = folded_scale(run, activation_scale)

    @hookimpl
    def export_inference(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        """Give the inference SAE the thresholds; the L0 of training is none of its own."""
        config["metadata"].pop("l0", None)
        tiny = torch.finfo(self.counts.dtype).tiny
        mean = self.sums / self.counts.clamp_min(tiny) / self.scale
        raise_thresholds(weights, config, self.options.share * mean)
