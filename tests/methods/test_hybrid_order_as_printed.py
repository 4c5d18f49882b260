"""HybridOrder as printed, in a loop of its own; section and equation beside each line."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from printed import (
    LAMBDA_0,
    RATE,
    Weights,
    batches,
    check,
    cosine,
    first_weights,
    linear_warm_up,
    trained,
    update,
)
from torch import Tensor

WARM_UP, START, INTERVAL, WINDOW = 60, 40, 12, 10
"""The paper's 3000, 2000 and 500 of 4882 steps, scaled; and its 10."""


def hybrid_order(
    data: list[Tensor],
    *,
    accumulate: int = 4,
    decay: str = "cosine",
    interval: int = INTERVAL,
    statistic: str | None = "count",
    adaptive_l1: str | None = "token",
    reorders: bool = True,
    moves_moments: bool = True,
    tied: float = 0.0,
) -> tuple[Weights, int]:
    """The weights after a step on each batch, and how often features were reordered."""
    w = first_weights()  # section 5: tied encoder and decoder weights, where they begin
    adam = torch.optim.Adam(w.values(), lr=RATE, betas=(0.9, 0.999))
    average = None  # MA(||x||)
    key = torch.zeros(len(w["b_enc"]), dtype=torch.float64)
    counts: deque[Tensor] = deque(maxlen=WINDOW)  # c^(t-1) ... c^(t-10)
    due, reordered, is_tied = False, 0, False
    for t, x in enumerate(data, start=1):
        norm = x.norm(dim=1)
        average = norm.mean() if average is None else 0.99 * average + 0.01 * norm.mean()
        ratio = {"token": norm, "batch": norm.mean(), None: average}[adaptive_l1] / average
        lambda_t = LAMBDA_0 * ratio  # 4.2: lambda_t = lambda_0 ||x|| / MA(||x||), beta 0.99
        if (t - 1) % accumulate == 0:  # 5: "tied encoder-decoder weights": one matrix
            is_tied = t <= tied * len(data)
        encoder = w["W_dec"].T if is_tied else w["W_enc"]
        f = torch.relu((x - w["b_dec"]) @ encoder + w["b_enc"])  # Eq. 3
        x_hat = f @ w["W_dec"] + w["b_dec"]  # Eq. 4
        error = (x - x_hat).square().sum(dim=1)
        loss = (error + lambda_t * f.abs().sum(dim=1)).mean()  # Eq. 2
        (loss / accumulate).backward()  # 4.2: accumulation over 4 batches
        ends = t % accumulate == 0
        if ends:
            is_cosine = decay == "cosine"
            shape = cosine(t, WARM_UP, len(data)) if is_cosine else linear_warm_up(t, WARM_UP)
            update(w, adam, RATE * shape, project=True)  # 4.2: constrained Adam; 5: clip at 1.0
            if is_tied:
                copy_decoder(w, adam)
        count = (f > 0).sum(dim=0).double()  # 4.1: c_i, with epsilon 0
        key = 0.99 * key + 0.01 * count / len(x)
        if t >= START:  # 5: reordering starts after step 2000
            v_t = 0.0
            if statistic and len(counts) == WINDOW:
                unit = 1 if statistic == "count" else len(x)
                v_t = (torch.stack([*counts]) / unit).var(dim=0).mean()  # Eq. 1
            due |= bool(interval and t % interval == 0) or bool(v_t > 0.1)  # 4.1: T, and tau 0.1
        counts.append(count)
        if due and ends and reorders:
            pi = torch.argsort(key, descending=True, stable=True)
            permute(w, adam if moves_moments else None, pi)  # 4.2: W_enc, W_dec and b_enc
            key, due, reordered = key[pi], False, reordered + 1
            counts = deque((c[pi] for c in counts), maxlen=WINDOW)
    return w, reordered


def copy_decoder(w: Weights, adam: torch.optim.Adam) -> None:
    """What the encoder goes on from, when it is a matrix of its own."""
    w["W_enc"].data = w["W_dec"].data.T.clone()
    of_decoder = adam.state[w["W_dec"]].items()
    adam.state[w["W_enc"]] = {name: v.T.clone() if v.ndim else v.clone() for name, v in of_decoder}


def permute(w: Weights, adam: torch.optim.Adam | None, pi: Tensor) -> None:
    for name, axis in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
        w[name].data = w[name].data.index_select(axis, pi)
        for moment in ("exp_avg", "exp_avg_sq") if adam else ():
            adam.state[w[name]][moment] = adam.state[w[name]][moment].index_select(axis, pi)


EQ_1 = {"threshold": 0.1, "look": 1, "cooldown": 0, "reduction": "mean", "statistic": "count"}
REORDER = {"start": START, "interval": INTERVAL, "window": WINDOW, **EQ_1}
READINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # the loop's, and the plugin's
    "whole, of counts": ({}, {}),
    "of frequencies": ({"statistic": "frequency"}, {"reorder": {"statistic": "frequency"}}),
    "periodic only": ({"statistic": None}, {"reorder": {"adaptive": False}}),
    "adaptive only": ({"interval": 0}, {"reorder": {"interval": 0}}),
    "without accumulation": ({"accumulate": 1}, {"training": {"accumulate": 1}}),
    "without cosine": ({"decay": "none"}, {"lr_scheduler_name": "constant"}),
    "lambda of the batch": ({"adaptive_l1": "batch"}, {"input-norm-l1": {"per": "batch"}}),
    "constant lambda": ({"adaptive_l1": None}, {"without": ("input-norm-l1",)}),
    "tied weights": ({"tied": 1.0}, {"extra": ("tied-weights",)}),
    "tied weights until half of the run": (
        {"tied": 0.5}, {"extra": ("tied-weights",), "tied-weights": {"until": 0.5}},
    ),
    "no reordering": ({"reorders": False}, {"without": ("reorder",)}),
    "moments left behind": ({"moves_moments": False}, {"reorder": {"move_moments": False}}),
}  # fmt: skip


def compare(reading: str, steps: int) -> None:
    loop, given = READINGS[reading]
    data, settings = batches(steps), dict(given)
    options = {"reorder": REORDER | settings.pop("reorder", {})}
    options |= {
        name: settings.pop(name) for name in ("input-norm-l1", "tied-weights") if name in settings
    }
    left_out = settings.get("without", ())
    options = {name: chosen for name, chosen in options.items() if name not in left_out}
    trainer = trained("hybrid-order", data, options=options, warm_up=WARM_UP, **settings)
    expected, reordered = hybrid_order(data, **loop)
    check(trainer, expected)
    if "reorder" not in left_out:
        assert len(trainer.run.plugin("reorder").report.steps) == reordered > 0


def test_the_method_is_the_papers() -> None:
    compare("whole, of counts", steps=72)


@pytest.mark.ci
@pytest.mark.parametrize("reading", READINGS)
def test_each_reading_is_the_papers(reading: str) -> None:
    compare(reading, steps=100)
