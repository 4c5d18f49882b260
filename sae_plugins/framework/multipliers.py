"""The coefficients of a step's losses, and k: what SAELens gives, times what plugins return.

A multiplier that depends on what came out of the batch is returned after the forward pass, when the
loss is made. A sparsity loss is linear in its coefficient, so that (multiplier - 1) times the loss
is what is missing. All such multipliers of a coefficient act at once, and no gradient flows through
them.

k, the active features of a TopK SAE, is multiplied before the forward pass. It stays from 1 to
d_sae. Where each token has k features, it is rounded to the nearest whole number, and halves up;
where the tokens of a batch have k on average, it keeps its fraction, and SAELens rounds the number
for the whole batch down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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


K = "k"
"""Beside the coefficients of a step, by the name that it has in SAELens."""


class Multipliers:
    """Multiplies the coefficients of one trainer's steps by what its plugins return."""

    def __init__(self, host: Host, run: Run) -> None:
        """Take the plugins and their run."""
        self._host, self._run = host, run
        self._of_plugins: dict[str, Any] = {}
        self._base_k: float | None = getattr(run.sae.cfg, "k", None)
        self._k: float | None = None

    @torch.no_grad()
    def before_forward(self, step_input: TrainStepInput) -> None:
        """Multiply the coefficients that the forward pass will use, and k."""
        self._of_plugins = {}
        coefficients = cast(dict[str, Any], step_input.coefficients)
        if self._base_k is not None:
            coefficients[K] = self._base_k
        tokens = step_input.sae_in.shape[:-1]
        changed = self._multiply("before_forward", coefficients, tokens, step_input=step_input)
        if K in changed or self._k is not None:  # which another step may have changed
            coefficients[K] = self._rounded(float(coefficients[K]))
            self._set_k(coefficients[K])
        for name in changed:
            self._log(name, coefficients[name])

    def after_forward(self, step_input: TrainStepInput, output: TrainStepOutput) -> None:
        """Multiply the coefficients of losses that are made, and these with them."""
        coefficients = cast(dict[str, Any], step_input.coefficients)
        factors = {name: 1.0 for name in coefficients if name != K}
        with torch.no_grad():
            arguments = {"step_input": step_input, "output": seen(output)}
            changed = self._multiply("after_forward", factors, None, **arguments)
        for name in changed:
            coefficients[name] = coefficients[name] * factors[name]
            self._log(name, coefficients[name])
            _scale(output, name, factors[name])

    def state_dict(self) -> dict[str, Any]:
        """The k of the last step; empty where nobody has multiplied it."""
        return {} if self._k is None else {K: self._k}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the k that was saved."""
        if K in state:
            self._set_k(state[K])

    def _rounded(self, k: float) -> float:
        row = self._run.architecture
        # what are whole numbers but for rounding errors shall be some
        k = math.floor(k + 0.5) if row.k_per == "token" else round(k, 9)
        return min(max(k, 1), self._run.features.d_sae)

    def _set_k(self, k: float) -> None:
        """Have k in all that trains, evaluates or saves the SAE from now on."""
        sae: Any = self._run.sae
        self._k = sae.cfg.k = sae.activation_fn.k = k

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
