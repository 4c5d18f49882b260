"""What happens to gradients before the optimizer's step, where SAELens only clips them at norm 1.

SAELens steps after every batch. Hooks on the parameters take the gradients away as backward
produces them, so that its clip and its step see none (Adam skips parameters without gradients),
until the last micro-batch of a window gives back their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sae_plugins.framework.resolve import WeightDecayForm


class GradientWindow:
    """Holds back the gradients of `size` micro-batches, then releases their clipped mean.

    The window's size, not its tokens, is the divisor: with equal micro-batches and a loss that is
    a mean over tokens, the released gradient is that of one large batch.
    """

    def __init__(self, parameters: Iterable[Parameter], size: int, clip: float | None) -> None:
        """Take over the gradients of `parameters`; `clip` bounds their total L2 norm."""
        self.size = size
        self.clip = clip
        self.batches = 0
        self._parameters = list(parameters)
        self._held: dict[Parameter, Tensor] = {}
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._hold)

    def _hold(self, parameter: Parameter) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if parameter in self._held:
            self._held[parameter].add_(gradient)
        else:
            self._held[parameter] = gradient
        parameter.grad = None

    @torch.no_grad()
    def release(self, project: Callable[[], None]) -> None:
        """Give the parameters the clipped mean gradient of the window, and start a new one.

        `project` changes the mean before the clip, which then counts only what is used.
        """
        for parameter, gradient in self._held.items():
            parameter.grad = gradient if self.batches == 1 else gradient.div_(self.batches)
        project()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.clip)
        self._held = {}
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        """The window in progress: its batches so far, and the gradient that is held of each."""
        return {"batches": self.batches, "held": [self._held.get(p) for p in self._parameters]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a window in progress."""
        self.batches = state["batches"]
        pairs = zip(self._parameters, state["held"], strict=True)
        self._held = {parameter: held for parameter, held in pairs if held is not None}
        if any(parameter.shape != held.shape for parameter, held in self._held.items()):
            raise ValueError("a gradient that is held has not the shape of its parameter")


@torch.no_grad()
def decay(optimizer: Optimizer, weight_decay: float, form: WeightDecayForm) -> None:
    """Decay all weights, before the optimizer's step.

    Decoupled, the weights shrink, as in AdamW. Coupled, their multiple is added to the gradient, as
    in Adam with an L2 penalty, and then divided by Adam like all of it.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if form == "decoupled":
                parameter.mul_(1 - group["lr"] * weight_decay)
            elif parameter.grad is not None:
                parameter.grad.add_(parameter, alpha=weight_decay)
