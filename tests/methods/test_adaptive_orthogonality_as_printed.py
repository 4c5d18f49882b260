"""Adaptive Orthogonal SAE as printed, in a loop of its own; the equation beside each line."""

from __future__ import annotations

import math
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

WARM_UP, FRACTION, TARGET = 20, 0.05, 1.2
"""The paper's 1000 of 4882 steps, scaled; of its 24 features' pairs, 0.5% would be one."""


def adaptive_orthogonality(
    data: list[Tensor],
    *,
    tau: float = 0.05,
    adaptive: bool = True,
    fraction: float = FRACTION,
    normalisation: str = "batch",
    target_share: float | None = None,
    squared: bool = False,
    project: bool = False,
    clip: float | None = 1.0,
) -> tuple[Weights, list[float]]:
    """The weights after a step on each batch, and the weight of the penalty at each."""
    w = first_weights()
    adam = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.01)  # 5.1
    n = len(w["b_enc"])
    k = math.floor(fraction * n * (n - 1) / 2)  # Eq. 2
    target, taus = TARGET, []
    for t, x in enumerate(data, start=1):
        f = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])  # f = E(x)
        r = x - (f @ w["W_dec"] + w["b_dec"])
        recon = (r.square().sum(dim=1) if squared else r.norm(dim=1)).mean()
        columns = columns_of(f, normalisation)
        c = (columns.T @ columns).abs()  # 4.1: C_ij = |f_i^T f_j|
        i, j = torch.triu_indices(n, n, offset=1)
        top = c.detach()[i, j].topk(k).indices  # 4.1: S_t
        orthogonality = c[i, j][top].sum()
        loss = recon + LAMBDA_0 * f.abs().sum(dim=1).mean() + tau * orthogonality  # Eq. 4
        loss.backward()
        rate = RATE * linear_warm_up(t, WARM_UP)  # 5.1
        update(w, adam, rate, project=project, clip=clip)  # 4.3: L2-normalised after each update
        taus.append(tau)
        l_recon = float(recon)
        if target_share and t <= WARM_UP:  # the paper has no rule for L_target
            target = l_recon if t == 1 else 0.9 * target + 0.1 * l_recon
            target *= target_share if t == WARM_UP else 1
        elif adaptive:
            tau = min(max(tau * target / l_recon, 0.01), 0.2)  # Eq. 3
    return w, taus


def columns_of(f: Tensor, normalisation: str) -> Tensor:
    """Those whose inner products are C_ij."""
    if normalisation == "correlation":
        f = f - f.mean(dim=0)
    if normalisation in ("cosine", "correlation"):
        return f / f.norm(dim=0).clamp_min(1e-12)
    return f / len(f) ** 0.5 if normalisation == "batch" else f  # raw: as printed


def penalty(**options: Any) -> dict[str, Any]:
    given = {"coactivation-penalty": {"fraction": FRACTION, "target": TARGET, **options}}
    return {"options": given}


READINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # the loop's, and the plugin's
    "whole": ({}, penalty()),
    "inner products as printed": (
        {"normalisation": "raw"}, penalty(normalisation="raw"),
    ),
    "cosines": ({"normalisation": "cosine"}, penalty(normalisation="cosine")),
    "correlations": ({"normalisation": "correlation"}, penalty(normalisation="correlation")),
    "squared loss, as printed": (
        {"squared": True}, {**penalty(), "training": {"loss_form": "sum_of_squares"}},
    ),
    "fixed weight": ({"tau": 0.2, "adaptive": False}, penalty(tau=0.2, adaptive=False)),
    "fewer pairs": ({"fraction": 0.01}, penalty(fraction=0.01)),
    "a target by a share": ({"target_share": 0.9}, penalty(target=None, target_share=0.9)),
    "projected": (
        {"project": True},
        {"options": {**penalty()["options"], "unit-norm-decoder": {"project": True}}},
    ),
    "no clip, as none is printed": ({"clip": None}, {**penalty(), "training": {"clip": None}}),
}  # fmt: skip


def compare(reading: str, steps: int) -> list[float]:
    loop, settings = READINGS[reading]
    data = batches(steps)
    trainer = trained("adaptive-orthogonality", data, warm_up=WARM_UP, **settings)
    expected, taus = adaptive_orthogonality(data, **loop)
    check(trainer, expected)
    return taus


def test_the_method_is_the_papers() -> None:
    assert len(set(compare("whole", steps=50))) > 5  # tau adapts


@pytest.mark.ci
@pytest.mark.parametrize("reading", READINGS)
def test_each_reading_is_the_papers(reading: str) -> None:
    compare(reading, steps=100)
