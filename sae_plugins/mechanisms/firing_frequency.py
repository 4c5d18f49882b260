"""How often each feature fires, as a moving average: Dynamic Feature Disentanglement, Eq. 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run


class FiringFrequency(Plugin):
    """Moving average of how often each feature fires, before any gate; others read it.

    A feature that a gate shuts must still be seen to fire, or it would never be let through again.
    So whoever gates activations says how often they fired before (`before_gate`, from its
    `after_forward`); without a gate, SAELens' own counts are right.
    """

    name = "firing-frequency"

    class Options(Plugin.Options):
        """How slowly it follows."""

        decay: float = Field(
            0.999, ge=0, lt=1, title="gamma", description="decay of the moving averages per step"
        )
        bias_correction: bool = Field(
            True,
            description="divide the averages by the weight of the steps that a feature has seen; "
            "false: as printed, averages that begin at 0",
        )

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Track the averages; they start at zero, so each feature's weight is kept to correct."""
        size = run.features.d_sae

        def track(name: str) -> Tensor:
            return run.features.track(self, name, torch.zeros(size, device=run.sae.device))

        self.sums, self.squares, self.mass = track("sums"), track("squares"), track("mass")
        self.ungated: Tensor | None = None

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Average this step's share of firing tokens."""
        counts = run.firing_counts if self.ungated is None else self.ungated
        self.ungated = None
        share = counts / output.sae_in.shape[0]
        new = 1 - self.options.decay
        self.sums.lerp_(share, new)
        self.squares.lerp_(share.square(), new)
        self.mass.lerp_(torch.ones_like(self.mass), new)

    def before_gate(self, counts: Tensor) -> None:
        """Count this step's firing tokens so, [d_sae], and not as they come out of the gate."""
        self.ungated = counts

    def mean(self) -> Tensor:
        """freq(f_i): share of tokens on which each feature fires, [d_sae], 0 where unknown."""
        return self.sums / self._weight()

    def bernoulli_variance(self) -> Tensor:
        """p (1 - p), the variance of firing on a token, [d_sae], in 0..0.25."""
        mean = self.mean()
        return mean * (1 - mean)

    def relative_variance(self) -> Tensor:
        """Variance of a step's share over the squared mean share, [d_sae]; 0 where unknown."""
        square = self.mean().square()
        variance = (self.squares / self._weight() - square).clamp_min(0)
        return variance / square.clamp_min(1e-12)

    def _weight(self) -> Tensor:
        if not self.options.bias_correction:
            return torch.ones_like(self.mass)
        return self.mass.clamp_min(torch.finfo(self.mass.dtype).tiny)
