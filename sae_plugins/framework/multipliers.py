"""The coefficients of a step's losses: what SAELens gives, times what plugins return.

A multiplier that depends on what came out of the batch is returned after the forward pass, when the
loss is made. A sparsity loss is linear in its coefficient, so that (multiplier - 1) times the loss
is what is missing. All such multipliers of a coefficient act at once, and no gradient flows through
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.framework.fast.output import seen
from sae_plugins.framework.returned import by_name, check_multiplier

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

    from sae_plugins.framework.host import Host
    from sae_plugins.framework.run import Run


class Multipliers:
    """Multiplies the coefficients of one trainer's steps by what its plugins return."""

    def __init__(self, host: Host, run: Run) -> None:
        """Take the plugins and their run."""
        self._host, self._run = host, run
        self._of_plugins: dict[str, Any] = {}

    @torch.no_grad()
    def before_forward(self, step_input: TrainStepInput) -> None:
        """Multiply the coefficients that the forward pass will use."""
        self._of_plugins = {}
        coefficients = cast(dict[str, Any], step_input.coefficients)
        tokens = step_input.sae_in.shape[:-1]
        for name in self._multiply("before_forward", coefficients, tokens, step_input=step_input):
            self._log(name, coefficients[name])

    def after_forward(self, step_input: TrainStepInput, output: TrainStepOutput) -> None:
        """Multiply the coefficients of losses that are made, and these with them."""
        coefficients = cast(dict[str, Any], step_input.coefficients)
        factors = dict.fromkeys(coefficients, 1.0)
        with torch.no_grad():
            arguments = {"step_input": step_input, "output": seen(output)}
            changed = self._multiply("after_forward", factors, None, **arguments)
        for name in changed:
            coefficients[name] = coefficients[name] * factors[name]
            self._log(name, coefficients[name])
            _scale(output, name, factors[name])

    def _multiply(
        self, event: str, values: dict[str, Any], tokens: torch.Size | None, **arguments: Any
    ) -> list[str]:
        """Multiply values in place by what plugins return in an event; the names of these."""
        changed: dict[str, None] = {}
        for plugin, returned in self._host.call(event, run=self._run, **arguments):
            for name, multiplier in by_name(plugin, event, returned):
                row = self._run.architecture
                check_multiplier(plugin, name, multiplier, values, row, tokens)
                values[name] = values[name] * multiplier
                changed[name] = None
                whose = f"{name}/{plugin.name}"
                known = self._of_plugins.get(whose)  # from before the forward pass
                self._of_plugins[whose] = multiplier if known is None else known * multiplier
                self._log(whose, self._of_plugins[whose])
        return list(changed)

    def _log(self, name: str, value: float | Tensor) -> None:
        self._run.log(f"coefficients/{name}", value.mean if isinstance(value, Tensor) else value)


def _scale(output: TrainStepOutput, coefficient: str, factor: float | Tensor) -> None:
    """Multiply the loss of a coefficient, and add to the whole loss what that makes of it."""
    name = f"{coefficient}_loss"  # as SAELens calls it
    if name not in output.losses:
        raise PluginError(
            f"the coefficient {coefficient!r} cannot be multiplied after the forward pass: its "
            f"loss {name!r} is not among {sorted(output.losses)}; multiply it in before_forward"
        )
    loss = output.losses[name]
    output.losses[name] = factor * loss
    output.loss = output.loss + (factor - 1) * loss
