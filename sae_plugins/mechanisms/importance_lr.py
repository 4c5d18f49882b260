"""Learning rates by importance: named in Dynamic Feature Disentanglement, which has no equation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, warn_if_never

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run


@torch.no_grad()
def scale_update_(after: Tensor, before: Tensor, scale: Tensor, axis: int) -> None:
    """Make the step from `before` to `after` shorter by `scale` [n], by index on `axis`."""
    shape = [1] * after.ndim
    shape[axis] = -1
    after.copy_(torch.lerp(before, after, scale.to(after).view(shape)))


class ImportanceLR(Plugin):
    """Scale each feature's update by its importance s_i / max_j s_j: a learning rate per feature.

    The update and not the gradient: Adam divides a constant factor of the gradient out again. A
    feature that never fires has importance 0 and stands still, but for weight decay. Costs a copy
    of the weights.
    """

    name = "importance-lr"
    requires = ("importance",)
    after = ("unit-norm-decoder",)  # whose renormalisation then comes last
    transient = ("old_weights",)

    class Options(Plugin.Options):
        """When it begins."""

        start: Steps = Field(0, description="first step whose update is scaled")

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Have importance measured."""
        warn_if_never(run, self.name, self.options.start)
        run.plugin("importance").use(run)
        self.old_weights: dict[str, Tensor] = {}

    @hookimpl
    def before_update(self, run: Run) -> None:
        """Note the weights."""
        if run.step >= self.options.start:
            parameters = dict(run.sae.named_parameters())
            axes = run.architecture.feature_axes
            self.old_weights = {name: parameters[name].detach().clone() for name in axes}

    @hookimpl
    def after_update(self, run: Run) -> None:
        """Go only part of the way."""
        before, self.old_weights = self.old_weights, {}
        scale = run.plugin("importance").relative_scores(run)
        parameters = dict(run.sae.named_parameters())
        for name, weights in before.items():
            axis = run.architecture.feature_axes[name]
            scale_update_(parameters[name].data, weights, scale, axis)
