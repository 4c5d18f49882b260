"""What the loops that are written from the papers share: data, first weights, and the comparison.

The loops are plain torch. They call nothing of the package but the generators of random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_plugins import plugins
from sae_plugins.testing import D_IN, advance, tiny_batches, tiny_sae, tiny_trainer

RATE = 0.01
LAMBDA_0 = 0.1
Weights = dict[str, Tensor]


def first_weights() -> Weights:
    """Unit rows, an encoder that is their transpose, and biases of 0; in float64."""
    sae = tiny_sae("standard", dtype=torch.float64, decoder_init_norm=1.0)
    rows = sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True)
    weights = {"W_enc": rows.T, "b_enc": sae.b_enc, "W_dec": rows, "b_dec": sae.b_dec}
    return {name: w.detach().clone().requires_grad_() for name, w in weights.items()}


def batches(steps: int) -> list[Tensor]:
    """Batches [32, 8] in float64."""
    return tiny_batches(steps=steps, dtype=torch.float64)


def trained(
    method: str,
    data: list[Tensor],
    *,
    without: tuple[str, ...] = (),
    options: dict[str, dict[str, Any]] | None = None,
    training: dict[str, Any] | None = None,
    extra: tuple[str, ...] = (),
    warm_up: int = 0,
    l1: float = LAMBDA_0,
    sample: int = 0,
    seed: int = 0,
    **config: Any,
) -> Any:
    """The trainer of a method in SAELens' own loop, with the method's own settings of SAELens.

    With a `sample`, so many batches are only measured, for the scale of all others.
    """
    given = {"without": without, "options": options, "training": training, "seed": seed}
    with plugins(method, *extra, **given) as plan:
        flags = dict(plan.sae_lens)
        sae = tiny_sae(
            flags["architecture"],
            dtype=torch.float64,
            decoder_init_norm=flags["decoder_init_norm"],
            apply_b_dec_to_input=flags.get("apply_b_dec_to_input", True),
            l1_coefficient=l1,
        )
        fields = {"lr_scheduler_name": flags["lr_scheduler_name"], "lr": RATE, "lr_end": 0.0}
        fields |= {"lr_warm_up_steps": warm_up, "dead_feature_window": 10**6, **config}
        trainer = tiny_trainer(sae, data[sample:], **fields)
    if sample:  # as `fit` begins
        trainer.activation_scaler.estimate_scaling_factor(D_IN, iter(data), sample)
    advance(trainer, data[sample:])
    return trainer


def check(trainer: Any, expected: Weights, tolerance: float = 1e-9) -> None:
    """Each weight is the loop's, and has moved."""
    first = first_weights()
    for name, weight in trainer.sae.named_parameters():
        assert (expected[name] - first[name]).abs().max() > 1e-3, f"{name} has not moved"
        apart = float((weight - expected[name]).abs().max().detach())
        assert apart <= tolerance, f"{name} is {apart:.1e} from the loop's"


# -- what all four papers do -----------------------------------------------------------------------


def linear_warm_up(step: int, warm_up: int) -> float:
    """A share of the learning rate: it rises linearly, and stays."""
    return min(1.0, step / warm_up) if warm_up else 1.0


def cosine(step: int, warm_up: int, steps: int) -> float:
    """The same, which falls to 0 by a cosine after the warm-up."""
    if step <= warm_up:
        return linear_warm_up(step, warm_up)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up - 1) / (steps - warm_up)))


def remove_parallel(weights: Weights) -> None:
    """Take the gradient along each decoder row away: the constrained Adam."""
    rows = weights["W_dec"]
    assert rows.grad is not None
    rows.grad -= (rows.grad * rows.data).sum(dim=1, keepdim=True) * rows.data


def normalise(weights: Weights) -> None:
    """Bring each decoder row to norm 1."""
    weights["W_dec"].data /= weights["W_dec"].data.norm(dim=1, keepdim=True)


def update(
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    rate: float,
    *,
    project: bool,
    clip: float | None = 1.0,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """An update with the gradients that are there, which are used up."""
    if project:
        remove_parallel(weights)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(weights.values(), clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    after_step()
    optimizer.zero_grad()
    normalise(weights)
