"""Plugins that the contract of plugins trains beside the one under test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run


class Witness(Plugin):
    """Knows which feature stands where: `identity` [d_sae]; requests one order, at one step."""

    name = "contract-witness"

    class Options(Plugin.Options):
        """When to request which order."""

        step: int = 0
        order: tuple[int, ...] = ()

    @hookimpl
    def attached(self, run: Run) -> None:
        """Number the features."""
        numbers = torch.arange(run.features.d_sae, device=run.sae.device)
        self.identity = run.features.track(self, "identity", numbers, reset=None)

    @hookimpl
    def step_ended(self, run: Run) -> None:
        """Request the order."""
        if run.step == self.options.step:
            run.features.permute(torch.tensor(self.options.order))


class ForwardWeights(Plugin):
    """Keeps the weights of the last forward pass, by name."""

    name = "contract-forward-weights"

    @hookimpl
    def after_forward(self, run: Run) -> None:
        """Copy them."""
        self.seen = {name: p.detach().clone() for name, p in run.sae.named_parameters()}


class Factor(Plugin):
    """Multiplies the sparsity coefficient by a constant, before the forward pass or after it."""

    name = "contract-factor"

    class Options(Plugin.Options):
        """When to return the multiplier."""

        event: Literal["before_forward", "after_forward"] = "before_forward"

    @hookimpl
    def before_forward(self, run: Run) -> dict[str, float]:
        """Multiply here, or not."""
        return self._multiplier(run, "before_forward")

    @hookimpl
    def after_forward(self, run: Run) -> dict[str, float]:
        """Multiply here, or not."""
        return self._multiplier(run, "after_forward")

    def _multiplier(self, run: Run, event: str) -> dict[str, float]:
        coefficient = run.architecture.sparsity_coefficient
        return {coefficient: 1.5} if coefficient and event == self.options.event else {}
