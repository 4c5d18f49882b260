"""Restart dead features on what the SAE reconstructs worst: HierarchicalSAE section 4.2, item 2.

The paper says "features with p_i < 0.01 are resampled from high-loss examples", and no more; the
rest is the usual procedure (Bricken et al. 2023): rows in proportion to their squared error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.features import FeatureChange, Reset
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, share, warn_if_never
from sae_plugins.mechanisms.firing_window import FiringWindow, Per

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput

    from sae_plugins.framework.run import Run

Direction = Literal["input", "residual"]
STOP = "last step at which it acts, so that new features are trained; none for the run's last"


def draw_rows(errors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows [count], drawn in proportion to their squared errors [B]; each once if they suffice.

    Drawn on the CPU, where the generator is.
    """
    weights = errors.double().cpu().nan_to_num(0, posinf=0)
    if not weights.any():
        weights = torch.ones_like(weights)
    again = count > int(weights.count_nonzero())
    return torch.multinomial(weights, count, again, generator=generator).to(errors.device)


def seen_inputs(sae: TrainingSAE[Any], sae_in: Tensor) -> Tensor:
    """What the decoder rows have to add up to, [B, d_in]: x - b_dec after all normalisation.

    `sae_in` is scaled already (`expected_average_only_in`); the SAE itself applies `layer_norm`,
    and subtracts b_dec only if `apply_b_dec_to_input` says so.
    """
    seen = sae.process_sae_in(sae_in)
    return seen if sae.cfg.apply_b_dec_to_input else seen - sae.b_dec


@torch.no_grad()
def high_loss_directions(
    sae: TrainingSAE[Any],
    output: TrainStepOutput,
    count: int,
    generator: torch.Generator,
    direction: Direction = "input",
) -> Tensor:
    """Directions [count, d_in] from rows of the batch drawn by squared error, for `Features.reset`.

    Args:
        sae: in training.
        output: of its forward pass on the batch.
        count: how many.
        generator: on the CPU.
        direction: the input less b_dec, or what the features leave of it.
    """
    errors = (output.sae_out.detach() - output.sae_in).float().square().sum(dim=-1)
    rows = draw_rows(errors, count, generator)
    directions = seen_inputs(sae, output.sae_in)[rows]
    if direction == "residual":
        acts = output.feature_acts.detach().to_dense()[rows].to(sae.W_dec)
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            acts = acts / sae.W_dec.norm(dim=1)
        directions = directions - acts @ sae.W_dec
    return directions


def dead_features(
    window: FiringWindow, rule: Literal["window", "since-check"], per: Per, threshold: float
) -> Tensor:
    """[d_sae] bool: mature features with p_i below the threshold, or those silent since the check.

    Checks come once per window, so "since the last check" is the whole window.
    """
    if rule == "since-check":
        return window.steps_fired == 0
    return (window.rate(per) < threshold) & window.mature()


class Resample(Plugin):
    """Restart dead features, along inputs that are reconstructed badly; once per window.

    A new feature's decoder row is a unit input (less b_dec), drawn with probability proportional
    to its squared error; its encoder column points the same way with 0.2 of the mean norm. Adam's
    moments and every plugin's statistics of it start again.

    Per step and with a threshold of one over the window, or less, a feature is dead if it never
    fired in the window: the paper's own numbers. Per token, 0.01 condemns healthy rare features.
    """

    name = "resample"
    meanings = {
        "requested": "features that start again at this step",
        "features": "that started again in the run",
    }
    requires = ("firing-window",)
    transient = ("window",)

    class Options(Plugin.Options):
        """Which features are dead, and where they start."""

        rule: Literal["window", "since-check"] = Field(
            "window",
            description="window: p_i below the threshold, not judged before its window is full; "
            "since-check: silent since the last check, however young",
        )
        threshold: float = Field(
            0.01, ge=0, le=1, description="of p_i; below it a feature is dead (rule window)"
        )
        per: Per = Field(
            "step",
            title="z_i^(j)",
            description="p_i is the share of steps with a firing, or of tokens (rule window)",
        )
        direction: Direction = Field(
            "input", description="new directions: the input less b_dec, or its residual"
        )
        stop: Steps | None = Field(share(0.8), description=STOP)

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Nothing resampled yet."""
        self.window: FiringWindow = run.plugin("firing-window")
        warn_if_never(run, self.name, self.window.options.window, self.options.stop)
        self.resampled = 0

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Once per window, request that dead features start again."""
        options = self.options
        due = run.step % self.window.options.window == 0
        if not due or (options.stop is not None and run.step > options.stop):
            return
        dead = dead_features(self.window, options.rule, options.per, options.threshold).nonzero()
        index = self.window.in_first_order(dead[:, 0])
        run.log("resample/requested", len(index))
        if len(index) == 0:
            return
        directions = high_loss_directions(run.sae, output, len(index), self.rng, options.direction)
        run.features.reset(index, directions)

    @hookimpl
    def features_changed(self, change: FeatureChange) -> None:
        """Count those that were carried out."""
        if isinstance(change, Reset):
            self.resampled += len(change.index)

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Summarise how many there were."""
        run.summarise("resample/features", self.resampled)
