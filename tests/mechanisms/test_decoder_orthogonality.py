"""The penalty on overlapping decoder rows: every form against the literal sum and autograd."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_plugins import PluginError
from sae_plugins.mechanisms.decoder_orthogonality import (
    EPSILON,
    DecoderOrthogonality,
    overlap_gradient,
    overlaps,
    penalty_of_directions,
    tiled_overlap_gradient,
)
from sae_plugins.testing import PluginContract, train

NAME = "decoder-orthogonality"


class TestAsPrinted(PluginContract):
    plugin = DecoderOrthogonality
    options = {"start": 2}


class TestMasked(PluginContract):
    plugin = NAME
    options = {"weighting": "none", "mask": "constant", "every": 2}


class TestEverythingElse(PluginContract):
    plugin = NAME
    options = {"denominator": "pair", "mask": "adaptive", "top": 0.5, "reduction": "sum"}


def literal(
    rows: Tensor,
    weights: Tensor | None = None,
    thresholds: Tensor | None = None,
    over_cosine: bool = False,
) -> Tensor:
    """sum_{i != j} a_ij (w_i . w_j)^2, one pair after the other, the a_ij without gradients."""
    total = rows.new_zeros(())
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i == j:
                continue
            cosine = rows[i] @ rows[j]
            size = cosine.detach().abs()
            pair = rows.new_ones(()) if weights is None else weights[i] * weights[j]
            if thresholds is not None:
                pair = pair * (size > thresholds[i])
            if over_cosine:
                pair = pair / (size + EPSILON)
            total = total + pair * cosine**2
    return total


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Unit rows, and the weights, thresholds and division of a form of the penalty."""
    n, d = draw(st.integers(2, 12)), draw(st.integers(2, 9))
    draws = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rows = torch.randn(n, d, generator=draws, dtype=torch.float64)
    if draw(st.booleans()):
        rows[-1] = draw(st.sampled_from([0.0, 1.0, -2.0])) * rows[0]  # silent, or a duplicate
    weights = torch.rand(n, generator=draws, dtype=torch.float64)
    thresholds = 0.6 * torch.rand(n, generator=draws, dtype=torch.float64)
    return {
        "rows": torch.nn.functional.normalize(rows, dim=1),
        "weights": weights if draw(st.booleans()) else None,
        "thresholds": thresholds if draw(st.booleans()) else None,
        "over_cosine": draw(st.booleans()),
    }


def assert_equals_the_literal_sum(
    gradient: Tensor, rows: Tensor, expected: Tensor, scale: float, exact: Tensor
) -> None:
    """Value and gradient to 1e-6 of their size; `scale` is what rounding is relative to."""
    value = float((rows * gradient).sum() / 4)
    assert gradient.dtype == rows.dtype
    assert abs(value - expected.item()) <= 1e-6 * max(scale, expected.item())
    assert (gradient.double() - exact).abs().max() <= 1e-6 * max(scale, exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(case=cases(), tile=st.integers(1, 13))
@settings(max_examples=40, deadline=None)
def test_every_form_equals_the_literal_sum_and_its_gradient(
    dtype: torch.dtype, case: dict[str, Any], tile: int
) -> None:
    tensors = {n: v.to(dtype) if isinstance(v, Tensor) else v for n, v in case.items()}
    if dtype == torch.float32 and case["thresholds"] is not None:
        close = (case["rows"] @ case["rows"].T).abs() - case["thresholds"][:, None]
        if close.abs().min() < 1e-6:
            return  # rounding decides which side of the threshold such a pair is on
    truth = case["rows"].clone().requires_grad_()
    expected = literal(**(case | {"rows": truth}))
    (exact,) = torch.autograd.grad(expected, truth)
    rows, weights = tensors["rows"], tensors["weights"]
    form = {name: tensors[name] for name in ("thresholds", "over_cosine")}
    gradient = tiled_overlap_gradient(rows, weights, **form, tile=tile)
    scale = 1.0 if dtype == torch.float32 else 1e-6
    assert_equals_the_literal_sum(gradient, rows, expected.detach(), scale, exact)
    if case["thresholds"] is None and not case["over_cosine"]:
        gradient = overlap_gradient(rows, weights)
        assert_equals_the_literal_sum(gradient, rows, expected.detach(), scale, exact)


@pytest.mark.parametrize("n", [3000, pytest.param(16384, marks=pytest.mark.slow)])
def test_the_closed_form_equals_the_tiles_at_a_size_that_nobody_sums_by_hand(n: int) -> None:
    draws = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(n, 64, generator=draws), dim=1)
    weights = torch.rand(n, generator=draws) ** 4
    closed, tiles = overlap_gradient(rows, weights), tiled_overlap_gradient(rows, weights)
    assert (closed - tiles).norm() < 1e-6 * tiles.norm()
    torch.testing.assert_close((rows * closed).sum(), (rows * tiles).sum(), rtol=1e-6, atol=0)


def test_the_gradient_goes_through_the_normalisation() -> None:
    draws = torch.Generator().manual_seed(0)
    decoder = torch.randn(9, 5, generator=draws, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(9, generator=draws, dtype=torch.float64)
    expected = literal(torch.nn.functional.normalize(decoder, dim=1), weights)
    (exact,) = torch.autograd.grad(3 * expected, decoder)
    value = penalty_of_directions(decoder, lambda rows: overlap_gradient(rows, weights))
    (gradient,) = torch.autograd.grad(3 * value, decoder)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, exact)


def loss_of(trainer: Any, **options: Any) -> Tensor:
    """The literal penalty of Eqs. 4 and 5 for a trainer's SAE, by the normalised decoder."""
    rows = torch.nn.functional.normalize(trainer.sae.W_dec.detach(), dim=1)
    return literal(rows, **options)


def close(value: Tensor, expected: Tensor) -> None:
    """To 2e-6: Eq. 5's epsilon takes 1e-6 of a value over |w_i . w_i|."""
    torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-12)


def terms(trainer: Any) -> Tensor:
    plugin = trainer.host.plugins[-1]
    assert plugin.name == NAME
    term = plugin.extra_losses(run=trainer.run)
    return torch.zeros(()) if term is None else term["overlap"]


def test_the_term_is_eqs_4_and_5_with_the_importance_of_the_last_step() -> None:
    options = {NAME: {"reduction": "sum"}}
    trainer = train(DecoderOrthogonality, options=options, steps=3, dtype=torch.float64)
    scores = trainer.run.plugin("importance").scores(trainer.run)
    assert (scores > 0).sum() > 3
    weights = scores / scores.max()
    expected = 0.1 * loss_of(trainer, weights=weights.double()) / (1 + EPSILON)
    torch.testing.assert_close(terms(trainer), expected, rtol=1e-6, atol=1e-12)


def test_the_options_change_what_they_say() -> None:
    def term(**options: Any) -> tuple[Tensor, Any]:
        plain = {"weighting": "none", "weight": 2.0}
        given = {NAME: {**plain, **options}}
        trainer = train(DecoderOrthogonality, options=given, steps=4, dtype=torch.float64)
        return terms(trainer), trainer

    n = 24
    value, trainer = term()
    close(value, 2 * loss_of(trainer) / n)
    value, trainer = term(reduction="sum")
    close(value, 2 * loss_of(trainer))
    value, trainer = term(mask="constant", threshold=0.5)
    half = torch.full((n,), 0.5, dtype=torch.float64)
    close(value, 2 * loss_of(trainer, thresholds=half) / n)
    value, trainer = term(denominator="pair")
    close(value, 2 * loss_of(trainer, over_cosine=True) / n)
    value, trainer = term(mask="adaptive", threshold=0.5, sensitivity=2)
    p = trainer.run.plugin("firing-frequency").mean().double()
    adaptive = 0.5 * (1 - 2 * p * (1 - p))
    assert adaptive.min() < 0.4
    close(value, 2 * loss_of(trainer, thresholds=adaptive) / n)
    value, trainer = term(every=5)  # the step in progress is the fifth
    close(value, 5 * 2 * loss_of(trainer) / n)
    assert term(every=3)[0] == 0
    assert term(start=6)[0] == 0
    assert term(start=5)[0] > 0


def test_the_top_features_alone_count_where_that_is_asked_for() -> None:
    trainer = train(DecoderOrthogonality, options={NAME: {"top": 0.25}}, steps=4)
    weights = trainer.run.plugin("importance").relative_scores(trainer.run)
    weights = weights.where(weights >= weights.topk(6).values[-1], 0)
    assert (weights > 0).sum() == 6
    expected = 0.1 * loss_of(trainer, weights=weights) / 24
    torch.testing.assert_close(terms(trainer), expected, rtol=1e-5, atol=1e-8)
    with pytest.raises(PluginError, match="it keeps the most important, so it needs weighting"):
        train(DecoderOrthogonality, options={NAME: {"top": 0.25, "weighting": "none"}})


def test_before_start_nothing_changes_and_from_then_on_rows_move_apart() -> None:
    plain = train(steps=6)
    waiting = train(DecoderOrthogonality, options={NAME: {"start": 7}}, steps=6)
    assert torch.equal(plain.sae.W_dec, waiting.sae.W_dec)
    options = {"weighting": "none", "weight": 10.0}
    pushed = train(DecoderOrthogonality, options={NAME: options}, steps=60)
    summary = pushed.run.summary
    assert summary[f"{NAME}/mean_cosine"] < overlaps(train(steps=60).sae.W_dec)["mean_cosine"]


def test_the_reading_that_makes_duplicates_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        train(DecoderOrthogonality, options={NAME: {"denominator": "pair"}}, steps=1)
    assert "bundles of duplicates where d_sae (24) exceeds d_in (8)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        train(DecoderOrthogonality, steps=1)
    assert "duplicates" not in caplog.text


def test_importance_is_only_measured_where_it_counts() -> None:
    for weighting, used in (("none", False), ("importance", True)):
        trainer = train(DecoderOrthogonality, options={NAME: {"weighting": weighting}}, steps=2)
        assert trainer.run.plugin("importance").in_use == used
        assert ("decode" in vars(trainer.sae)) == used


@pytest.mark.parametrize("tile", [1, 3, 100])
def test_the_summary_counts_each_pair_once(tile: int) -> None:
    rows = torch.tensor([[1.0, 0], [0, -2], [3, 0.3], [1, 1]])
    found = overlaps(rows, tile)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).abs()
    pairs = cosine[torch.triu(torch.ones(4, 4), diagonal=1).bool()]
    assert found["mean_cosine"] == pytest.approx(float(pairs.mean()))
    assert found["largest_cosine"] == pytest.approx(float(pairs.max()))
    assert found["duplicates"] == 1
