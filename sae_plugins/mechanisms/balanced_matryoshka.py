"""Matryoshka losses that count less the narrower they are: Chanin et al. 2025, feature hedging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run


class BalancedMatryoshka(Plugin):
    """Weigh the loss of each inner width of a Matryoshka SAE: multiplier^(widths beyond it).

    A narrow SAE puts parts of features that it lacks into those which it has (hedging), and a wide
    one takes parts of general features out of them (absorption): a weight between 0, which is
    BatchTopK, and 1, which is Matryoshka, balances the two. The loss of the whole SAE counts 1.
    """

    name = "balanced-matryoshka"

    class Options(Plugin.Options):
        """How much less a width counts than the next one."""

        multiplier: float = Field(
            0.75, ge=0, description="weight of a width's loss, over that of the next wider one"
        )

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs losses of several widths."""
        return None if architecture.ordered else "they have no loss of any width but the whole"

    @hookimpl
    def extra_losses(self, run: Run, output: TrainStepOutput) -> dict[str, Tensor]:
        """Add what makes each of SAELens' losses, which count 1, count as much as it should."""
        inner = [f"inner_mse_loss_{end}" for _, end in run.features.groups[:-1]]
        weights = {
            name: self.options.multiplier**beyond for beyond, name in enumerate(reversed(inner), 1)
        }
        return {name: (weight - 1) * output.losses[name] for name, weight in weights.items()}
