"""Stop a run whose loss is no longer finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run


class NanGuard(Plugin):
    """Stop training soon after the loss becomes NaN or infinite, naming the step and the terms."""

    name = "nan-guard"
    observes_only = True

    class Options(Plugin.Options):
        """How often to look."""

        every: int = Field(
            50, ge=1, le=100, description="steps between looks; each costs one GPU sync"
        )

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Nothing seen yet."""
        self.seen: list[tuple[int, dict[str, Tensor]]] = []

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Keep the step's losses, without a sync, and look at them every few steps."""
        terms = {"loss": output.loss, **output.losses}
        self.seen.append((run.step, {name: term.detach() for name, term in terms.items()}))
        if len(self.seen) >= self.options.every:
            self.look()

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Look at the last steps."""
        self.look()

    def look(self) -> None:
        """Raise if a loss was not finite.

        Raises:
            PluginError: names the first such step and its largest loss terms.
        """
        seen, self.seen = self.seen, []
        if not seen:
            return
        finite = torch.stack([terms["loss"] for _, terms in seen]).isfinite().tolist()
        if all(finite):
            return
        step, terms = seen[finite.index(False)]
        values = {name: value.item() for name, value in terms.items() if name != "loss"}
        largest = sorted(
            values.items(),
            key=lambda term: math.inf if math.isnan(term[1]) else abs(term[1]),
            reverse=True,
        )[:3]
        raise PluginError(
            f"the loss is not finite since step {step}; largest terms: "
            + ", ".join(f"{name} = {value:.4g}" for name, value in largest)
            + ". Try a lower --lr, a longer --lr_warm_up_steps, or --normalize_activations "
            "expected_average_only_in. A run that is resumed would come to the same."
        )
