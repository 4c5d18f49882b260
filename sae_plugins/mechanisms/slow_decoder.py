"""A decoder that is trained more slowly from some step on: ours, a part of late-untying."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, share, warn_if_never

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run


class SlowDecoder(Plugin):
    """Make each update of the decoder smaller from some step on: a learning rate of its own.

    The update and not the gradient: Adam divides a constant factor of the gradient out again. Costs
    a copy of the decoder. Weight decay, where there is some, goes on as before.
    """

    name = "slow-decoder"
    after = ("unit-norm-decoder",)  # whose renormalisation then comes last
    transient = ("old_rows",)

    class Options(Plugin.Options):
        """How slowly, and from when on."""

        rate: float = Field(
            0.1,
            ge=0,
            le=1,
            description="of the learning rate, for the decoder; 0: it stands still, but for weight "
            "decay",
        )
        after: Steps = Field(share(0.7), description="last step at the full learning rate")

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Warn where nothing is slow."""
        warn_if_never(run, self.name, self.options.after + 1)
        self.old_rows: Tensor | None = None

    @hookimpl
    def before_update(self, run: Run) -> None:
        """Note the rows."""
        if run.step > self.options.after:
            self.old_rows = run.sae.W_dec.detach().clone()

    @hookimpl
    def after_update(self, run: Run) -> None:
        """Go only part of the way."""
        before, self.old_rows = self.old_rows, None
        if before is not None:
            rows = run.sae.W_dec.data
            rows.copy_(torch.lerp(before, rows, self.options.rate))
