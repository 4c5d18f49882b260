"""Sparsity coefficient in proportion to the input's norm: HybridOrder section 4.2, below Eq. 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepInput

    from sae_plugins.framework.run import Run


def norm_ratio(norms: Tensor, average: Tensor) -> Tensor:
    """lambda_t / lambda_0 = ||x|| / MA(||x||): [B] for the norms [B] and their moving average."""
    return norms / average.clamp_min(1e-12)


class InputNormL1(Plugin):
    """Scale the sparsity coefficient by the input norm over its moving average."""

    name = "input-norm-l1"
    meanings = {
        "average_norm": "moving average of the inputs' norm",
        "least": "least factor of the sparsity coefficient in the batch",
        "greatest": "greatest factor of the sparsity coefficient in the batch",
    }

    class Options(Plugin.Options):
        """How the ratio is taken."""

        per: Literal["token", "batch"] = Field(
            "token",
            description="token: each token's own norm, so both loss terms scale as ||x||^2; "
            "batch: the batch's mean norm, which hardly differs from its moving average",
        )
        decay: float = Field(
            0.99, ge=0, lt=1, title="beta", description="decay of the moving average per step"
        )

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs a sparsity coefficient, and one that weighs tokens for `per="token"`."""
        coefficient = architecture.sparsity_coefficient
        if coefficient and options.per == "token" and not architecture.weighs_tokens:
            return (
                f"their {coefficient} coefficient applies to the mean over tokens; choose "
                "--input-norm-l1.per batch"
            )
        return architecture.lacks_coefficient

    @hookimpl
    def attached(self, run: Run) -> None:
        """Start without an average: the first batch gives it."""
        self.average: Tensor | None = None

    @hookimpl
    def before_forward(self, run: Run, step_input: TrainStepInput) -> dict[str, Tensor]:
        """Multiply the sparsity coefficient."""
        dtype = torch.promote_types(step_input.sae_in.dtype, torch.float32)
        norms = torch.linalg.vector_norm(step_input.sae_in, dim=-1, dtype=dtype)
        mean = norms.mean()
        if self.average is None:
            self.average = mean
        else:
            self.average = torch.lerp(mean, self.average, self.options.decay)
        run.log("input-norm-l1/average_norm", self.average)
        ratio = norm_ratio(norms if self.options.per == "token" else mean, self.average)
        run.log("input-norm-l1/least", ratio.min)
        run.log("input-norm-l1/greatest", ratio.max)
        assert run.architecture.sparsity_coefficient is not None
        return {run.architecture.sparsity_coefficient: ratio}
