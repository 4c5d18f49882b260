"""Another k for the first part of a run: ours, a part of late-untying."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, share, warn_if_never

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)


class KFactor(Plugin):
    """Multiply k by a constant up to some step, and train with the k that was given from then on.

    TopK SAEs have the nearest whole number, as always.
    """

    name = "k-factor"

    class Options(Plugin.Options):
        """The factor, and how long."""

        factor: float = Field(1.5, gt=0, description="multiplies k")
        until: Steps = Field(share(0.7), description="last step with that k")

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs a k."""
        return architecture.lacks_k

    @hookimpl
    def attached(self, run: Run) -> None:
        """Warn where the SAE is not trained with one of the two."""
        warn_if_never(run, self.name, 1, self.options.until)
        if self.options.until >= run.total_steps:
            logger.warning(
                "k-factor: the SAE has %g times the k that was given to the end, since the run has "
                "%d steps and --k-factor.until is %d: give fewer, or a share of the run, as 0.7",
                *(self.options.factor, run.total_steps, self.options.until),
            )

    @hookimpl
    def before_forward(self, run: Run) -> dict[str, float]:
        """Multiply k."""
        return {"k": self.options.factor if run.step <= self.options.until else 1.0}
