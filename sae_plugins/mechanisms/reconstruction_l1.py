"""Sparsity coefficient that follows the reconstruction error: HierarchicalSAE Eq. 5.

The paper's target, 2.5, is in the unit of its mean squared errors. By its own pairs of MSE and
explained variance, raw Gemma-2-2B activations have a variance of 27.1 in that unit, about that of
an element; so the target is a share of 2.5 / 27.1 = 0.092 of it. That share is the default, since
it means the same everywhere.
On other scales the printed numbers sit at a bound for ever: 2.0 on normalised inputs, 0.1 on sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run

Unit = Literal["fvu", "mse", "sum"]


def reconstruction_error(sae_in: Tensor, sae_out: Tensor, unit: Unit) -> Tensor:
    """L_recon of a batch [B, d_in], a scalar.

    "mse" is the mean square of the residual's elements, "sum" the sum over d_in of it, and "fvu"
    its share of the variance about the batch's mean.
    """
    dtype = torch.promote_types(sae_in.dtype, torch.float32)
    target = sae_in.to(dtype)
    error = _sum_of_squares(sae_out.to(dtype) - target)
    if unit == "mse":
        return error / target.numel()
    if unit == "sum":
        return error / len(target)
    # the mean by a product: torch's over the first axis is slow on a CPU
    mean = target.new_ones(len(target)) @ target / len(target)
    variance = _sum_of_squares(target - mean)
    return error / variance.clamp_min(1e-12)


def _sum_of_squares(values: Tensor) -> Tensor:
    flat = values.flatten()
    return flat.dot(flat)


def reconstruction_multiplier(
    error: Tensor, target: float, least: float, greatest: float
) -> Tensor:
    """alpha_t = clamp(L_target / L_recon, least, greatest), Eq. 5; `greatest` without any error."""
    return (target / error.clamp_min(1e-30)).clamp(least, greatest)


class ReconstructionL1(Plugin):
    """Scale the sparsity coefficient by the wanted over the actual reconstruction error.

    The error is this batch's, and the multiplier is a number: no gradient flows through it. The
    closing summary gives the share of steps spent at each bound, where the multiplier does not
    control anything.
    """

    name = "reconstruction-l1"
    meanings = {
        "error": "of this batch, which the target is compared with",
        "share_of_steps_at_least": "with the least factor, where the error has no say",
        "share_of_steps_at_greatest": "with the greatest factor, where the error has no say",
    }
    state_version = 2  # until then, the multiplier was of the batch before

    class Options(Plugin.Options):
        """The target and its unit."""

        target: float = Field(
            0.092,
            gt=0,
            title="L_target",
            description="reconstruction error at which the coefficient is as given; the paper's "
            "2.5 is in the unit mse, on raw Gemma-2-2B activations",
        )
        unit: Unit = Field(
            "fvu",
            description="fvu: share of the variance; mse: mean square per element; sum: over d_in",
        )
        least: float = Field(0.1, ge=0, le=100, description="lower bound of the multiplier")
        greatest: float = Field(
            2.0, ge=0, le=100, validate_default=True, description="upper bound of the multiplier"
        )

        @field_validator("greatest")
        @classmethod
        def _not_below_least(cls, greatest: float, given: ValidationInfo) -> float:
            if greatest < given.data.get("least", 0):
                raise ValueError(f"it is below --reconstruction-l1.least = {given.data['least']}")
            return greatest

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs a sparsity coefficient."""
        return architecture.lacks_coefficient

    @hookimpl
    def attached(self, run: Run) -> None:
        """Count the steps at each bound."""
        self.bounded = torch.zeros(2, device=run.sae.device)

    @hookimpl
    def after_forward(self, run: Run, output: TrainStepOutput) -> dict[str, Tensor]:
        """Multiply the sparsity coefficient."""
        options = self.options
        error = reconstruction_error(output.sae_in, output.sae_out, options.unit)
        run.log("reconstruction-l1/error", error)
        bounds = (options.least, options.greatest)
        multiplier = reconstruction_multiplier(error, options.target, *bounds)
        self.bounded[0] += multiplier == options.least
        self.bounded[1] += multiplier == options.greatest
        assert run.architecture.sparsity_coefficient is not None
        return {run.architecture.sparsity_coefficient: multiplier}

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Summarise how much of the run was spent at a bound."""
        least, greatest = (self.bounded / max(1, run.step - 1)).tolist()
        run.summarise("reconstruction-l1/share_of_steps_at_least", least)
        run.summarise("reconstruction-l1/share_of_steps_at_greatest", greatest)
