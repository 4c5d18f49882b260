"""The penalty on each row's nearest other one, against the literal sum and autograd."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_plugins.mechanisms import nearest_orthogonality
from sae_plugins.mechanisms.decoder_orthogonality import nearest, penalty_of_directions
from sae_plugins.mechanisms.nearest_orthogonality import (
    NearestOrthogonality,
    nearest_overlap_gradient,
)
from sae_plugins.testing import PluginContract, train


class TestContract(PluginContract):
    """In chunks that are drawn."""

    plugin = NearestOrthogonality
    options = {"chunk": 10, "weight": 1.0}


def literal(decoder: Tensor, order: Tensor, chunk: int) -> Tensor:
    """The sum, one row after the other."""
    rows = torch.nn.functional.normalize(decoder, dim=1)
    total = decoder.new_zeros(())
    for members in order.split(chunk):
        for i in members:
            others = [rows[i] @ rows[j] for j in members if j != i]
            if others:
                total = total + torch.stack(others).square().max()
    return total


@given(
    n=st.integers(2, 12), d=st.integers(2, 6), chunk=st.integers(2, 12), seed=st.integers(0, 10**6)
)
@settings(max_examples=30, deadline=None)
def test_its_value_and_gradient_are_the_literal_sums(n: int, d: int, chunk: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    decoder = torch.randn(n, d, generator=draws, dtype=torch.float64).requires_grad_()
    order = torch.randperm(n, generator=draws)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_orthogonality, "nearest", partial(nearest, tile=3))
        gradient_at = partial(nearest_overlap_gradient, order=order, chunk=chunk)
        ours = penalty_of_directions(decoder, gradient_at)
    expected = literal(decoder, order, chunk)
    assert torch.allclose(ours, expected)
    gradients = [torch.autograd.grad(value, decoder)[0] for value in (ours, expected)]
    assert torch.allclose(*gradients, atol=1e-10)


def test_rows_end_further_from_their_nearest() -> None:
    def nearest(weight: float) -> float:
        options = {"nearest-orthogonality": {"weight": weight}}
        rows = train(NearestOrthogonality, options=options).sae.W_dec.detach()
        cosines = torch.nn.functional.normalize(rows, dim=1)
        cosines = (cosines @ cosines.T).abs().fill_diagonal_(0)
        return float(cosines.amax(dim=1).mean())

    assert nearest(20.0) < 0.95 * nearest(0.0)
