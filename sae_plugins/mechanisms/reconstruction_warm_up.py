"""Reconstruction alone at first, without sparsity: Dynamic Feature Disentanglement section 4.

The phase before its step 1000 trains with the "basic reconstruction loss".
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, share

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)


class ReconstructionWarmUp(Plugin):
    """Train on reconstruction alone for the first steps: no sparsity loss.

    SAELens' own warm-up of the coefficient (`--l1_warm_up_steps`) is a ramp; this is a step. Both
    together multiply. Terms of other plugins are theirs to hold back.
    """

    name = "reconstruction-warm-up"

    class Options(Plugin.Options):
        """How long."""

        steps: Steps = Field(share(0.2), description="steps at the start without a sparsity loss")

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs a sparsity coefficient."""
        return architecture.lacks_coefficient

    @hookimpl
    def attached(self, run: Run) -> None:
        """Warn of a run that never ends the phase."""
        if self.options.steps >= run.total_steps:
            logger.warning(
                "reconstruction-warm-up.steps = %d is not before the end of the run (%d steps): "
                "it will train without any sparsity; give --reconstruction-warm-up.steps",
                self.options.steps,
                run.total_steps,
            )

    @hookimpl
    def before_forward(self, run: Run) -> dict[str, float]:
        """Multiply the sparsity coefficient by 0 in the phase, and by 1 from then on."""
        assert run.architecture.sparsity_coefficient is not None
        return {run.architecture.sparsity_coefficient: float(run.step > self.options.steps)}
