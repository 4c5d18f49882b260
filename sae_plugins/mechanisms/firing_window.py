"""Which features fired in the last steps: HierarchicalSAE Eq. 4, counted once for all plugins."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import InSteps, StepsOrShare, share

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run

Per = Literal["step", "token"]


class FiringWindow(Plugin):
    """Count firings over a sliding window of steps, for the plugins that ask.

    It changes nothing by itself. Plugins that `requires` it read `run.plugin("firing-window")` from
    `step_ended` on, when this step is counted. All of it moves with the features and starts again
    with them:

    age [d_sae]: steps since the feature started, this one included.
    steps_fired [d_sae]: on how many of the window's steps it fired on any token.
    tokens_fired [d_sae]: on how many of the window's tokens it fired.
    identity [d_sae]: the position at which the feature started the run; never reset.

    The sums are integers, so that adding the newest step and subtracting the oldest stays exact.
    """

    name = "firing-window"
    meanings = {"silent": "share of features that did not fire within the window"}

    class Options(Plugin.Options):
        """The window's length."""

        window: Annotated[StepsOrShare, InSteps(1, 1000)] = Field(
            share(0.02), title="w", description="steps in the window"
        )

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Track counts along the feature axis."""
        size, device, track = run.features.d_sae, run.sae.device, run.features.track
        ring = torch.zeros(self.options.window, size, dtype=torch.int32, device=device)
        nothing = torch.zeros(size, dtype=torch.int64, device=device)
        self.ring = track(self, "ring", ring, axes=(1,))
        self.age = track(self, "age", nothing.clone())
        self.steps_fired = track(self, "steps_fired", nothing.clone())
        self.tokens_fired = track(self, "tokens_fired", nothing)
        positions = torch.arange(size, device=device)
        self.identity = track(self, "identity", positions, reset=None)
        self.tokens: deque[int] = deque(maxlen=self.options.window)

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Count this step in, and the one that leaves the window out."""
        fired = run.firing_counts.to(torch.int32)
        oldest = self.ring[run.step % self.options.window]
        self.tokens_fired += fired - oldest
        self.steps_fired += fired.sign() - oldest.sign()
        oldest.copy_(fired)
        self.age += 1
        self.tokens.append(output.sae_in.shape[0])
        run.log("firing-window/silent", self.silent_share)

    def rate(self, per: Per) -> Tensor:
        """p_i [d_sae], in 0..1: share of the window's steps, or tokens, on which features fired.

        A feature that is younger than the window is judged by the steps since it started.
        """
        age = self.age.clamp(1, self.options.window)
        if per == "step":
            return self.steps_fired.float() / age
        newest_first = torch.tensor([0, *reversed(self.tokens)], device=age.device)
        seen = newest_first.cumsum(0)[age.clamp_max(len(self.tokens))]
        return self.tokens_fired.float() / seen.clamp_min(1)

    def mature(self) -> Tensor:
        """[d_sae] bool: whether the feature is at least as old as the window."""
        return self.age >= self.options.window

    def silent_share(self) -> Tensor:
        """Share of all features that are mature and fired on no step of the window."""
        return (self.mature() & (self.steps_fired == 0)).float().mean()

    def in_first_order(self, features: Tensor) -> Tensor:
        """Feature indices [k] by where they started, so that no later position decides anything."""
        return features[self.identity[features].argsort()]
