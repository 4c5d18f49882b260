"""Dynamic Feature Disentanglement as printed, in a loop of its own; the equation beside each line.

Its statistics are float32 in the package, and float64 here, so weights agree to 1e-6.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from printed import (
    LAMBDA_0,
    RATE,
    Weights,
    batches,
    check,
    first_weights,
    linear_warm_up,
    trained,
    update,
)
from torch import Tensor

WARM_UP = 20
"""The paper's 1000 of 4882 steps, scaled."""


def adaptive_threshold(
    data: list[Tensor],
    *,
    gamma: float = 0.9,
    bias_correction: bool = True,
    base: float = 0.3,
    beta: float = 1.0,
    gated: bool = True,
    weighted: bool = True,
    lambda_ortho: float = 0.1,
    denominator: str = "i i",
    masked: bool = False,
    importance_of: str = "this",
    scales_rates: bool = False,
    warm_up: bool = True,
    project: bool = False,
    clip: float | None = 1.0,
) -> tuple[Weights, float]:
    """The weights after a step on each batch, and the share of activations that the gate shut."""
    w = first_weights()
    adam = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.01)  # 4.4
    average, weight, shut = torch.zeros_like(w["b_enc"].data), 0.0, []
    before = torch.zeros_like(average)  # the norms of the step before
    for t, x in enumerate(data, start=1):
        is_main = t > WARM_UP  # 4.4: the main phase
        freq = average / (weight if bias_correction and weight else 1)
        variance = freq * (1 - freq)  # of 1[f_i > 0], which is 0 or 1
        tau = base * (1 - beta * variance)  # Eq. 2
        f = torch.relu(x @ w["W_enc"] + w["b_enc"])  # 3.1
        fires = (f > 0).double().mean(dim=0)  # before the gate
        if gated and is_main:
            shut.append(1 - float((f > tau).sum() / (f > 0).sum()))
            f = f * (f > tau)
        recon = (x - (f @ w["W_dec"] + w["b_dec"])).norm(dim=1).mean()  # 4.2: L_recon
        (gradient,) = torch.autograd.grad(recon, f, retain_graph=True)
        now = gradient.norm(dim=0)
        share = important(now if importance_of == "this" else before, freq)
        loss = recon
        if is_main or not warm_up:
            loss = loss + LAMBDA_0 * f.abs().sum(dim=1).mean()  # Eq. 4: lambda_1
        if is_main and lambda_ortho:
            rows = w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True)  # 4.3: normalised
            cosine = rows @ rows.T  # w_i^T w_j
            with torch.no_grad():
                own = cosine.diagonal()[:, None].expand_as(cosine)
                alpha = 1 / ((own if denominator == "i i" else cosine).abs() + 1e-6)  # Eq. 5
                if weighted:
                    alpha = alpha * share[:, None] * share  # Eq. 5: s_i s_j / max s_k s_l
                if masked:
                    alpha = alpha * (cosine.abs() > (0.3 * (1 - beta * variance))[:, None])
                alpha = alpha.fill_diagonal_(0)  # i != j
            loss = loss + lambda_ortho * (alpha * cosine.square()).sum()  # Eq. 4
        loss.backward()
        rate = RATE * linear_warm_up(t, WARM_UP)  # 4.4: linear learning rate increase
        average = gamma * average + (1 - gamma) * fires  # Eq. 1
        weight = gamma * weight + (1 - gamma)
        scale = important(now, freq) if scales_rates else None
        after_step = partial(shorten, w, scale, rate, copies(w))
        # 4.4: unit norm after each update
        update(w, adam, rate, project=project, clip=clip, after_step=after_step)
        before = now
    return w, sum(shut) / len(shut) if shut else 0.0


def important(norms: Tensor, freq: Tensor) -> Tensor:
    """s_i / max_j s_j, with s_i of Eq. 3; nothing is unimportant as long as nothing is known."""
    s = norms * freq / freq.max().clamp_min(1e-30)
    return s / s.max() if s.max() > 0 else torch.ones_like(s)


def copies(w: Weights) -> Weights:
    return {name: weight.detach().clone() for name, weight in w.items()}


def shorten(w: Weights, scale: Tensor | None, rate: float, old: Weights) -> None:
    """Learning rates by importance, which have no equation: Adam's step, without the decay."""
    for name, shape in (("W_enc", (1, -1)), ("b_enc", (-1,)), ("W_dec", (-1, 1))):
        if scale is not None:
            decayed = old[name] * (1 - rate * 0.01)
            w[name].data = decayed + scale.view(shape) * (w[name].data - decayed)


MAIN = WARM_UP + 1


def given(
    without: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    training: dict[str, Any] | None = None,
    **options: dict[str, Any],
) -> dict[str, Any]:
    """The plugin's settings; options by mechanism, with `_` for `-`."""
    own = {name.replace("_", "-"): chosen for name, chosen in options.items()}
    scaled = {
        "firing-frequency": {"decay": 0.9},
        "activation-threshold": {"start": MAIN},
        "decoder-orthogonality": {"start": MAIN},
        "reconstruction-warm-up": {"steps": WARM_UP},
    }
    together = {
        name: {**scaled.get(name, {}), **own.get(name, {})} for name in {*scaled, *own} - {*without}
    }
    return {"options": together, "without": without, "extra": extra, "training": training}


READINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # the loop's, and the plugin's
    "whole": ({}, given()),
    "averages that begin at 0, as printed": (
        {"bias_correction": False}, given(firing_frequency={"bias_correction": False}),
    ),
    "gamma": ({"gamma": 0.99}, given(firing_frequency={"decay": 0.99})),
    "tau_base": ({"base": 0.6}, given(activation_threshold={"base": 0.6})),
    "variance raises the threshold": (
        {"beta": -1.0}, given(activation_threshold={"sensitivity": -1.0}),
    ),
    "no threshold": ({"gated": False}, given(without=("activation-threshold",))),
    "all features equally important": (
        {"weighted": False}, given(decoder_orthogonality={"weighting": "none"}),
    ),
    "no orthogonality": ({"lambda_ortho": 0}, given(without=("decoder-orthogonality",))),
    # where a cosine near 0 changes its sign, much weight makes much of what float32 rounds
    "|w_i . w_j| in Eq. 5": (
        {"denominator": "i j", "lambda_ortho": 0.001},
        given(decoder_orthogonality={"denominator": "pair", "weight": 0.001}),
    ),
    "|w_i . w_j|, all equally important": (
        {"denominator": "i j", "weighted": False},
        given(decoder_orthogonality={"denominator": "pair", "weighting": "none"}),
    ),
    "adaptive masking": ({"masked": True}, given(decoder_orthogonality={"mask": "adaptive"})),
    "importance of the step before": (
        {"importance_of": "before"}, given(importance={"step": "before"}),
    ),
    "all three innovations": (
        {"masked": True, "scales_rates": True},
        given(extra=("importance-lr",), decoder_orthogonality={"mask": "adaptive"}),
    ),
    "sparsity from the first step on": (
        {"warm_up": False}, given(without=("reconstruction-warm-up",)),
    ),
    "projected": ({"project": True}, given(unit_norm_decoder={"project": True})),
    "no clip, as none is printed": ({"clip": None}, given(training={"clip": None})),
}  # fmt: skip


def compare(reading: str, steps: int) -> None:
    loop, settings = READINGS[reading]
    data = batches(steps)
    trainer = trained("adaptive-threshold", data, warm_up=WARM_UP, **settings)
    expected, shut = adaptive_threshold(data, **loop)
    check(trainer, expected, tolerance=1e-6)
    assert (shut > 0.01) == loop.get("gated", True)


def test_the_method_is_the_papers() -> None:
    compare("whole", steps=50)


@pytest.mark.ci
@pytest.mark.parametrize("reading", READINGS)
def test_each_reading_is_the_papers(reading: str) -> None:
    compare(reading, steps=100)
