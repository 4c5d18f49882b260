"""Sparsity coefficient that falls linearly over the run: HierarchicalSAE Eq. 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run


def linear_multiplier(step: int, total: int, floor: float = 0.0) -> float:
    """lambda_t / lambda_0 = 1 - t/T at step t of 1..T, but `floor` at least; 0 at T (Eq. 3)."""
    return max(floor, 1 - step / total)


class LinearL1(Plugin):
    """Let the sparsity coefficient fall linearly over the run, to 0 or to a floor.

    At 0, the run ends without any sparsity: how dense the SAE gets is decided by how long it has
    relaxed. A floor of 0.1 to 0.3 keeps what was learned sparse.
    """

    name = "linear-l1"

    class Options(Plugin.Options):
        """Where it ends."""

        floor: float = Field(
            0.0, ge=0, le=1, description="least multiplier; the paper's schedule ends at 0"
        )

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs a sparsity coefficient."""
        return architecture.lacks_coefficient

    @hookimpl
    def before_forward(self, run: Run) -> dict[str, float]:
        """Multiply the sparsity coefficient."""
        assert run.architecture.sparsity_coefficient is not None
        multiplier = linear_multiplier(run.step, run.total_steps, self.options.floor)
        return {run.architecture.sparsity_coefficient: multiplier}
