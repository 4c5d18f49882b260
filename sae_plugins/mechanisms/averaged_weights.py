"""Weights that are averaged over the end of a run, as Polyak and Juditsky 1992 average them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.features import FeatureChange, Merged, Reset
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run


class AveragedWeights(Plugin):
    """End the run with a moving average of the weights (EMA) in place of the last ones.

    Decoder rows keep the lengths that they had last, so that only their directions are averaged. A
    feature that starts again, or is merged, has its average start again. Costs a copy of the
    weights. The threshold that BatchTopK learns for inference follows activations, and stays.
    """

    name = "averaged-weights"
    after = ("unit-norm-decoder", "tied-weights", "slow-decoder")

    class Options(Plugin.Options):
        """How long the average is."""

        decay: float = Field(
            0.999, ge=0, lt=1, description="of the average, per step; a plain mean until then"
        )

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Keep the averages on the feature axis, where they have one."""
        self.averages: dict[str, Tensor] = {}
        for name, weight in run.sae.named_parameters():
            average = self.averages[name] = weight.detach().clone()
            axis = run.architecture.feature_axes.get(name)
            if axis is not None:
                run.features.track(self, name, average, axes=(axis,), reset=None)

    @hookimpl
    def step_ended(self, run: Run) -> None:
        """Average; on the last step, give the SAE the averages."""
        share = max(1 - self.options.decay, 1 / run.step)
        for name, weight in run.sae.named_parameters():
            self.averages[name].lerp_(weight.detach(), share)
        if run.step == run.total_steps:
            lengths = torch.linalg.vector_norm(run.sae.W_dec, dim=1, keepdim=True)
            for name, weight in run.sae.named_parameters():
                weight.data.copy_(self.averages[name])
            rows = run.sae.W_dec.data
            now = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            rows.mul_(lengths / now.clamp_min(1e-12))

    @hookimpl
    def features_changed(self, run: Run, change: FeatureChange) -> None:
        """Start the averages of features again that start again."""
        if isinstance(change, Reset):
            again = change.index
        elif isinstance(change, Merged):
            again = torch.cat([change.into, change.source])
        else:
            return
        weights = dict(run.sae.named_parameters())
        for name, axis in run.architecture.feature_axes.items():
            now = weights[name].detach().index_select(axis, again)
            self.averages[name].index_copy_(axis, again, now)
