"""Choose the L0 of an SAE instead of its sparsity coefficient."""

import torch
from pydantic import Field

from sae_plugins import Plugin, hookimpl


def next_log_multiplier(log_multiplier, l0, target, rate):
    """One step of integral control: raise the coefficient while L0 is too high.

    All are scalars; L0 counts by its logarithm, so that twice and half the target weigh the same.
    """
    return log_multiplier + rate * torch.log(l0.clamp_min(1e-3) / target)


class TargetL0(Plugin):
    """Scale the sparsity coefficient step by step until L0, the active features per token, fits."""

    name = "target-l0"

    class Options(Plugin.Options):
        l0: float = Field(32.0, gt=0, description="L0 to reach")
        rate: float = Field(0.01, gt=0, lt=1, description="share of the error put right per step")

    @classmethod
    def unsupported(cls, architecture, options):
        return architecture.lacks_coefficient

    @hookimpl
    def attached(self, run):
        self.log_multiplier = torch.zeros((), device=run.sae.device)

    @hookimpl
    def before_forward(self, run):
        return {run.architecture.sparsity_coefficient: self.log_multiplier.exp()}

    @hookimpl
    def after_forward(self, run, output):
        l0 = (output.feature_acts != 0).sum(-1).float().mean()
        run.log("target-l0/l0", l0)
        options = self.options
        self.log_multiplier = next_log_multiplier(self.log_multiplier, l0, options.l0, options.rate)
