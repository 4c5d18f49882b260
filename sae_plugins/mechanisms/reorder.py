"""Reorder features by firing frequency, periodically and on a trigger: HybridOrder section 4.1.

A permutation that moves Adam's moments along is an exact symmetry of every architecture without an
order of its own: it changes how features can be read, and neither the loss nor the training.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.features import FeatureChange, Permuted
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import Steps, share, warn_if_never
from sae_plugins.mechanisms.order_report import MEANINGS, OrderReport

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run


Statistic = Literal["cv2", "frequency", "count"]
Reduction = Literal["weighted", "mean", "max"]
PRINTED: tuple[Statistic, ...] = ("frequency", "count")
"""The printed text's readings of Eq. 1."""


def activation_variance(
    frequencies: Tensor, tokens: int, statistic: Statistic, reduction: Reduction
) -> Tensor:
    """v_t = Var({c_i^(t-k)}), the variance of Eq. 1, reduced over features to a scalar.

    Args:
        frequencies: [window, d_sae], the share of tokens on which each feature fired, per step.
        tokens: per step.
        statistic: the unit of c_i. "count" and "frequency" are the printed text's two readings.
            "cv2" is the variance relative to the squared mean, less what sampling `tokens` tokens
            gives by itself, (1 - p) / (p tokens): drift of the features, whatever the scale.
        reduction: over features; "weighted" weighs each by its mean frequency.
    """
    mean = frequencies.mean(dim=0)
    variance = frequencies.var(dim=0)
    if statistic == "count":
        variance = variance * tokens**2
    elif statistic == "cv2":
        noise = mean * (1 - mean) / tokens
        variance = (variance - noise) / mean.square().clamp_min(1e-12)
    # clamped only here: clamping each feature would leave the noise's positive half
    if reduction == "max":
        return variance.max().clamp_min(0)
    if reduction == "mean":
        return variance.mean().clamp_min(0)
    return ((variance * mean).sum() / mean.sum().clamp_min(1e-12)).clamp_min(0)


def frequency_order(frequency: Tensor) -> Tensor:
    """Positions [n] by descending frequency [n]; ties keep their order."""
    return torch.argsort(frequency, descending=True, stable=True)


def cluster_order(frequency: Tensor, firing: Tensor, cut: float = 0.8) -> Tensor:
    """Positions [n] with features that fire together side by side, frequent clusters first.

    Clusters by average linkage on the Jaccard distance between the columns of `firing` [B, n],
    cut at distance `cut`; clusters by their greatest frequency, features by frequency inside.
    Costs n^2 B operations and n^2 memory.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(frequency) < 2:
        return frequency_order(frequency)
    fires = firing.float()
    together = fires.T @ fires
    counts = together.diagonal()
    either = counts[:, None] + counts[None, :] - together
    distance = (1 - together / either.clamp_min(1)).fill_diagonal_(0)
    condensed = squareform(distance.double().cpu().numpy(), checks=False)
    cluster = torch.from_numpy(fcluster(linkage(condensed, "average"), cut, "distance")).long()
    cluster = cluster.to(frequency.device)
    greatest = torch.zeros(int(cluster.max()) + 1, device=frequency.device, dtype=frequency.dtype)
    greatest.scatter_reduce_(0, cluster, frequency, "amax")
    keys = [-frequency, cluster, -greatest[cluster]]  # the last key counts first
    return torch.from_numpy(np.lexsort([key.cpu().numpy() for key in keys])).to(frequency.device)


class Reorder(Plugin):
    """Reorder features by firing frequency every few hundred steps and when activity drifts.

    The closing summary says what the paper reports.
    """

    name = "reorder"
    after = ("activation-threshold",)  # whose new thresholds are no doing of the order
    meanings = MEANINGS

    class Options(Plugin.Options):
        """When to reorder, and by what."""

        interval: Steps = Field(
            share(0.1), title="T", description="steps between periodic reorderings; 0 for none"
        )
        adaptive: bool = Field(True, description="also reorder when the variance exceeds threshold")
        threshold: float = Field(
            0.1, ge=0, title="tau", description="activation variance that triggers a reordering"
        )
        unit: Literal["absolute", "mean"] = Field(
            "absolute",
            description="of threshold. absolute: the variance itself, as printed; mean: the "
            "variance's own running mean, so that 3 is three times what is usual",
        )
        start: Steps = Field(share(0.4), description="first step at which features are reordered")
        key: Literal["frequency", "cluster"] = Field(
            "frequency",
            description="order by frequency; or clusters of features that fire together, then "
            "frequency (n^2 memory)",
        )
        statistic: Statistic = Field(
            "cv2",
            title="c_i",
            description="unit of the variance. count, frequency: the two that are printed, over "
            "the steps before this one, t-10 to t-1; cv2: relative to the squared mean, less what "
            "sampling gives, with this step",
        )
        reduction: Reduction = Field("weighted", description="of the variance over features")
        window: int = Field(
            10,
            ge=2,
            le=1000,
            title="k",
            description="steps in the variance",
        )
        look: int | None = Field(
            None,
            ge=1,
            description="steps between looks at the variance, each of which makes a GPU wait; by "
            "default the window, and 1 is Eq. 1",
        )
        cooldown: Steps = Field(50, description="least steps between triggered reorderings")
        decay: float = Field(
            0.99,
            ge=0,
            lt=1,
            description="decay per step of the frequency that orders features, and of the "
            "variance's running mean",
        )
        move_moments: bool = Field(
            True, description="move Adam's moments along; false is a control that harms"
        )

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Track frequencies along the feature axis."""
        looks = max(self.options.window, self._look) if self.options.adaptive else 0
        causes = [self.options.interval, looks]
        first = min((steps for steps in causes if steps), default=run.total_steps + 1)
        warn_if_never(run, self.name, max(first, self.options.start))
        size, device = run.features.d_sae, run.sae.device
        ring = torch.zeros(self.options.window, size, device=device)
        self.recent = run.features.track(self, "recent_frequencies", ring, axes=(1,))
        self.frequency = run.features.track(self, "frequency", torch.zeros(size, device=device))
        self.report = OrderReport(self, run)
        self.last_reordering = 0
        self.cause: str | None = None
        self.usual = torch.zeros(2, device=device)  # the variance and its weight, averaged

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Update the frequencies; when an order is due, request it at the window's end."""
        tokens = output.sae_in.shape[0]
        frequency = run.firing_counts / tokens
        before = self.recent.clone() if self._looks_at(run.step) else None
        self.recent[run.step % self.options.window] = frequency
        self.frequency.lerp_(frequency, 1 - self.options.decay)
        drifts = before is not None and self._drifts(run, tokens, before)
        self.cause = self.cause or self._cause(run.step, drifts)
        if self.cause is None or not run.updated:
            return
        self.report.before(run, output.sae_in, self.cause)
        self.cause, self.last_reordering = None, run.step
        parts = [start + self._order(start, end, output) for start, end in run.features.groups]
        run.features.permute(torch.cat(parts), move_moments=self.options.move_moments)

    @hookimpl
    def features_changed(self, run: Run, change: FeatureChange) -> None:
        """Record what the new order did."""
        if isinstance(change, Permuted):
            self.report.after(run, change.order)
        else:
            self.report.again(run)

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Summarise what the paper reports in sections 6.3 and 6.4."""
        seen = 1 - self.options.decay ** (run.step - 1)
        self.report.summarise(run, self.frequency / seen if seen else self.frequency)

    def _order(self, start: int, end: int, output: TrainStepOutput) -> Tensor:
        frequency = self.frequency[start:end]
        if self.options.key == "frequency":
            return frequency_order(frequency)
        return cluster_order(frequency, output.feature_acts[:, start:end].to_dense() != 0)

    @property
    def _look(self) -> int:
        return self.options.look or self.options.window

    def _looks_at(self, step: int) -> bool:
        options, is_printed = self.options, self.options.statistic in PRINTED
        if not options.adaptive or step % self._look or step < options.window + is_printed:
            return False
        return step >= options.start or options.unit == "mean"  # which is to be known by then

    def _drifts(self, run: Run, tokens: int, before: Tensor) -> bool:
        """Whether the variance exceeds the threshold.

        Args:
            run: the run.
            tokens: of this step.
            before: `recent` without this step, whose place the oldest one has.
        """
        options = self.options
        recent = before if options.statistic in PRINTED else self.recent
        variance = activation_variance(recent, tokens, options.statistic, options.reduction)
        threshold = variance.new_tensor(options.threshold)
        if options.unit == "mean":
            new = torch.stack([variance, torch.ones_like(variance)])
            self.usual.lerp_(new, 1 - options.decay**self._look)
            mean, weight = self.usual
            threshold = threshold * mean / weight
        if run.step < options.start:
            return False
        run.log("reorder/variance", variance)
        run.log("reorder/threshold", threshold)
        if run.step > options.window:
            for printed in PRINTED:
                value = partial(activation_variance, before, tokens, printed, "mean")
                run.log(f"reorder/variance_of_{printed}", value)
        return bool(variance > threshold)

    def _cause(self, step: int, drifts: bool) -> str | None:
        options = self.options
        if step < options.start:
            return None
        if options.interval and step % options.interval == 0:
            return "periodic"
        rested = step - self.last_reordering >= options.cooldown
        return "triggered" if drifts and rested else None
