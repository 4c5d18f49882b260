"""Penalty on the features that fire together most: Adaptive Orthogonal SAE, Eqs. 1-4.

It acts on activations, not on decoder rows, so it pushes apart features that are active on the same
tokens, whatever their directions.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.mechanisms.pairs import co_activation

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)

Normalisation = Literal["batch", "cosine", "correlation", "raw"]

DECAY = 0.9
"""Per step, of the average of the reconstruction loss that becomes L_target."""
LEAST_STEPS = 10
"""That the average needs."""


def number_of_pairs(features: int, fraction: float) -> int:
    """k = fraction n (n - 1) / 2 of Eq. 2, rounded down, and 1 at least."""
    return max(1, math.floor(fraction * features * (features - 1) / 2))


def normalised(acts: Tensor, normalisation: Normalisation) -> Tensor:
    """Columns [B, n] whose inner products are C_ij (section 4.1) under a normalisation.

    batch: f_i.f_j / B, the mean over tokens; raw: f_i.f_j as printed, in the activations' units
    squared and growing with B; cosine: between columns; correlation: between centred columns.
    """
    if normalisation == "cosine":
        return torch.nn.functional.normalize(acts, dim=0)
    if normalisation == "correlation":
        centred = acts - acts.mean(dim=0)
        # a constant column is rounding noise once it is centred
        noise = 1e-5 * torch.linalg.vector_norm(acts.detach(), dim=0)
        norms: Tensor = torch.linalg.vector_norm(centred, dim=0)
        return centred / norms.maximum(noise).clamp_min(1e-12)
    return acts / math.sqrt(len(acts)) if normalisation == "batch" else acts


def adapted(
    tau: Tensor, loss: Tensor, target: Tensor, gain: float, low: float, high: float
) -> Tensor:
    """tau_(t+1) = clip(tau_t (L_target / L_recon)^gain, low, high): Eq. 3, where gain is 1."""
    return (tau * (target / loss.clamp_min(1e-30)) ** gain).clamp(low, high)


class CoactivationPenalty(Plugin):
    """Penalise the pairs of features that fire together most, by a weight that adapts.

    The closing summary gives the final weight tau, the target, and the share of steps at which tau
    stood at each end of its range.
    """

    name = "coactivation-penalty"
    meanings = {
        "tau": "weight of the penalty",
        "unweighted": "the penalty without its weight",
        "loss_over_target": "reconstruction loss over the one at which the weight stands still",
        "target": "reconstruction loss at which the weight stands still",
        "share_at_tau_min": "of steps, with the least weight",
        "share_at_tau_max": "of steps, with the greatest weight",
    }

    class Options(Plugin.Options):
        """Which pairs are penalised, how strongly."""

        fraction: float = Field(
            0.005, gt=0, le=1, title="k", description="share of all pairs that is penalised"
        )
        normalisation: Normalisation = Field(
            "batch",
            title="C_ij",
            description="of f_i.f_j. batch: its mean over tokens; raw: as printed, which grows "
            "with the batch and kills features; cosine; correlation: the cosine of centred "
            "activations, which costs as much as if every feature fired",
        )
        reduce: Literal["sum", "mean"] = Field("sum", description="over the penalised pairs")
        tau: float = Field(
            0.05, ge=0, title="tau_0", description="weight of the penalty, or its first value"
        )
        adaptive: bool = Field(
            True, description="adapt the weight to the reconstruction loss; false keeps tau"
        )
        gain: float = Field(
            1.0,
            gt=0,
            le=1,
            description="power of L_target / L_recon by which a step changes the weight; at 1, as "
            "printed, an offset of 1% takes it to an end of its range within 300 steps",
        )
        tau_min: float = Field(0.01, ge=0, description="least weight")
        tau_max: float = Field(0.2, gt=0, validate_default=True, description="greatest weight")
        target: float | None = Field(
            None,
            gt=0,
            title="L_target",
            description="reconstruction loss at which the weight stands still; by default its "
            "average when the learning rate's warm-up ends, times target_share, and the weight "
            "stays tau until then",
        )
        target_share: float = Field(
            1.0,
            gt=0,
            description="of that average, which is the target where target gives none; below 1, "
            "the weight falls until the loss has",
        )

        @field_validator("tau_max")
        @classmethod
        def _above_the_least(cls, value: float, info: ValidationInfo) -> float:
            if value < info.data.get("tau_min", 0):
                raise ValueError(f"it is below tau_min = {info.data['tau_min']}")
            return value

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Set the first weight; find out when there will be a target."""
        options, device = self.options, run.sae.device
        self.k = number_of_pairs(run.features.d_sae, options.fraction)
        dtype = torch.promote_types(run.sae.W_dec.dtype, torch.float32)
        self.tau = torch.tensor(options.tau, dtype=dtype, device=device)
        if options.adaptive:
            self.tau.clamp_(options.tau_min, options.tau_max)
        self.target_step = 0 if options.target else max(run.warm_up_steps, LEAST_STEPS)
        if options.adaptive and self.target_step >= run.total_steps:
            logger.warning(
                "coactivation-penalty finds its target at step %d, and the run has %d: the weight "
                "will not adapt; give --coactivation-penalty.target",
                self.target_step,
                run.total_steps,
            )
        self.target = torch.full_like(self.tau, options.target or 0.0)
        self.at_bounds = torch.zeros(2, dtype=torch.int64, device=device)
        self.steps = 0

    @hookimpl
    def extra_losses(self, run: Run, output: TrainStepOutput) -> dict[str, Tensor]:
        """tau times the sum over the top k pairs."""
        acts = output.feature_acts.to_dense()  # a TopK SAE's may be sparse
        acts = acts.to(torch.promote_types(acts.dtype, torch.float32))
        row = run.architecture
        penalty = co_activation(
            normalised(acts, self.options.normalisation),
            self.k,
            # which gives activations of 0 no gradient
            closed_form=self.options.normalisation != "correlation"
            and not (row.signed or row.straight_through),
        )
        if self.options.reduce == "mean":
            penalty = penalty / self.k
        run.log("coactivation-penalty/tau", self.tau)
        run.log("coactivation-penalty/unweighted", penalty.detach())
        return {"pairs": self.tau * penalty}

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Adapt the weight to the loss of this step; Eq. 3 has it so."""
        options = self.options
        if not options.adaptive:
            return
        loss = output.losses["mse_loss"].detach().to(self.tau.dtype)
        if run.step <= self.target_step:
            self.target = loss if run.step == 1 else torch.lerp(loss, self.target, DECAY)
            if run.step == self.target_step:
                self.target = self.target * options.target_share
        else:
            run.log("coactivation-penalty/loss_over_target", loss / self.target)
            self.tau = adapted(
                self.tau, loss, self.target, options.gain, options.tau_min, options.tau_max
            )
            bounds = self.tau.new_tensor([options.tau_min, options.tau_max])
            self.at_bounds += self.tau == bounds
            self.steps += 1

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Summarise where the weight went."""
        run.summarise("coactivation-penalty/tau", float(self.tau))
        if self.steps:
            at_least, at_most = (self.at_bounds / self.steps).tolist()
            run.summarise("coactivation-penalty/target", float(self.target))
            run.summarise("coactivation-penalty/share_at_tau_min", at_least)
            run.summarise("coactivation-penalty/share_at_tau_max", at_most)
