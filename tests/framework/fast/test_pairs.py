"""Operations on pairs are those on matrices, and so are their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_plugins.framework.fast.encoder import encode
from sae_plugins.framework.fast.pairs import Dense, Sparse, above

ROWS, N, D = 5, 7, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MATRIX = drawn(ROWS, N).relu()
MATRIX[2], MATRIX[:, 4] = 0, 0  # a token and a feature of which nothing fires
OPERATIONS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "times": lambda pairs, values, W: pairs.times(values, W),
    "token_sums": lambda pairs, values, W: pairs.token_sums(values, W[:, 0]),
    "sums": lambda pairs, values, W: pairs.token_sums(values),
    "by_feature": lambda pairs, values, W: pairs.dense(values * pairs.by_feature(W[:, 0])),
    "nested": lambda pairs, values, W: pairs.nested(values, W, [2, 5, N]),
    "feature_sums": lambda pairs, values, W: pairs.feature_sums(values.detach()) @ W,
    "outer": lambda pairs, values, W: pairs.outer(values.detach(), drawn(ROWS, D)) * W,
}


@pytest.mark.parametrize("matrix", [MATRIX, torch.zeros_like(MATRIX)], ids=["some", "none"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_list_of_pairs_acts_as_the_matrix_does(name: str, matrix: Tensor) -> None:
    flat = above(matrix, 0).flatten().nonzero().squeeze(1)
    sparse = Sparse.of_flat(flat, matrix.shape)
    found = []
    for pairs in (Dense(), sparse):
        values, W = pairs.of(matrix).clone().requires_grad_(), drawn(N, D).requires_grad_()
        result = OPERATIONS[name](pairs, values, W)
        weights = drawn(*result.shape, seed=1)
        ways = torch.autograd.grad((result * weights).sum(), (values, W), materialize_grads=True)
        found.append((result, sparse.of(ways[0]) if pairs is not sparse else ways[0], ways[1]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_rows_of_equally_many_pairs_are_the_same_pairs() -> None:
    indices = torch.stack([torch.randperm(N)[:3] for _ in range(ROWS)])
    pairs = Sparse.of_rows(indices, N)
    assert torch.equal(pairs.dense(pairs.of(MATRIX)), MATRIX * (pairs.dense(torch.ones(15)) > 0))
    assert torch.equal(pairs.counted(pairs.of(MATRIX)).to_dense(), pairs.dense(pairs.of(MATRIX)))


def test_nan_fires() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, float("nan")])
    assert above(values, 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_encoder_has_the_gradients_of_its_product(sparse: bool, shifted: bool) -> None:
    x, chosen = drawn(ROWS, D), torch.tensor([0, 3, 8, 9, 30])

    def choose(pre: Tensor) -> Dense | Sparse:
        return Sparse.of_flat(chosen, pre.shape) if sparse else Dense()

    found = []
    for fast in (True, False):
        W, b, b_dec = (drawn(*s, seed=2).requires_grad_() for s in ((D, N), (N,), (D,)))
        if fast:
            pre, values, pairs = encode(x, W, b, b_dec if shifted else None, choose)
            assert isinstance(pairs, Sparse) == sparse
        else:
            pre = (x - b_dec if shifted else x) @ W + b
            values = pre.flatten()[chosen] if sparse else pre
        loss = (pre * drawn(ROWS, N, seed=3)).sum() + values.square().sum()
        found.append((pre, *torch.autograd.grad(loss, (W, b, b_dec), materialize_grads=True)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
