"""`--fast_step`: what takes the place of an SAE's `training_forward_pass`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch.optim import Optimizer

from sae_plugins.base.saelens import altered
from sae_plugins.framework.fast.activations import STEPS
from sae_plugins.framework.fast.choice import Choice

logger = logging.getLogger(__name__)


class FastStep(Choice):
    """SAELens' step in fewer operations, equal to rounding; where it cannot be, SAELens' own."""

    transient = ("sae", "said")

    def __init__(self, sae: Any) -> None:
        """Take the place of the step of `sae`."""
        super().__init__()
        self.sae = sae
        self.said: set[str] = set()
        sae.training_forward_pass = self

    def leave(self) -> None:
        """Give the SAE SAELens' own step back."""
        if vars(self.sae).get("training_forward_pass") is self:
            del self.sae.training_forward_pass

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Train on a batch."""
        reason = unsupported(self.sae, step_input)
        if reason is None:
            return STEPS[type(self.sae)](self.sae, step_input, self)
        if reason not in self.said:
            self.said.add(reason)
            logger.warning("fast_step: SAELens' own step trains this SAE: %s", reason)
        own: TrainStepOutput = type(self.sae).training_forward_pass(self.sae, step_input)
        return own


def unsupported(sae: Any, step_input: TrainStepInput) -> str | None:
    """Why SAELens' own step must train on a batch; None if the fast one can."""
    if type(sae) not in STEPS:
        return f"{type(sae).__name__} has no fast one"
    if sae.dtype not in (torch.float32, torch.float64):
        return f"its weights are {sae.dtype}"
    for name, stock in _STOCK.items():
        if getattr(sae.cfg, name, stock[0]) not in stock:
            return f"its {name} is {getattr(sae.cfg, name)}"
    if sae.hook_z_reshaping_mode or step_input.sae_in.ndim != 2:
        return "it takes heads apart"
    if step_input.sae_in.requires_grad:
        return "the activations want a gradient"
    if names := altered(sae):
        return f"somebody has changed its {', '.join(names)}"
    return None


_STOCK: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", "expected_average_only_in", "covariance_whitening"),
    "lp_norm": (1.0,),
    "pre_act_loss_coefficient": (None,),
    "jumprelu_sparsity_loss_mode": ("step",),
    "use_matryoshka_aux_loss": (False,),
}
"""The values of settings with which there is a fast step."""


def fuse(optimizer: Optimizer) -> None:
    """Have torch's Adam update a parameter in one pass, where its device has that."""
    for group in optimizer.param_groups:
        if all(p.device.type in ("cpu", "cuda") for p in group["params"]):
            group["fused"], group["foreach"] = True, False
