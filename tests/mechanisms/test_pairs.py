"""The top pairs: every way equals brute force, and none takes n^2 memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_plugins.mechanisms.pairs import co_activation, top_pairs

WAYS: dict[str, dict[str, Any]] = {
    "sparse": {"way": "sparse"},
    "streamed": {"way": "streamed"},
    "small tiles": {"way": "streamed", "tile": 16},
    "chosen": {},
}


def literal(acts: torch.Tensor, k: int) -> torch.Tensor:
    """Eq. 4's sum, from the whole matrix."""
    rows, columns = torch.triu_indices(acts.shape[1], acts.shape[1], 1)
    products = (acts.T @ acts)[rows, columns].abs()
    return products.topk(min(k, len(products))).values.sum()


def value_and_gradient(function: Any, acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = acts.clone().requires_grad_()
    value = function(leaf)
    value.backward()
    return value.detach(), leaf.grad


def random_acts(
    seed: int, tokens: int, features: int, rate: float, dtype: torch.dtype, signed: bool = False
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, features, generator=generator, dtype=dtype)
    fired = torch.rand(tokens, features, generator=generator) < rate
    return torch.where(fired, values if signed else values.abs(), 0)


# Small whole numbers: products are exact, ties are frequent, columns may be empty.
whole = st.integers(1, 9).flatmap(
    lambda features: st.lists(
        st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, -1]), min_size=features, max_size=features),
        min_size=1,
        max_size=6,
    )
)


@given(rows=whole, k=st.integers(1, 50), way=st.sampled_from(sorted(WAYS)))
@settings(max_examples=300, deadline=None)
def test_selection_equals_brute_force(rows: list[list[int]], k: int, way: str) -> None:
    acts = torch.tensor(rows, dtype=torch.float64)
    pairs = top_pairs(acts, k, **WAYS[way])
    matrix = acts.T @ acts
    products = [(abs(matrix[i, j]), i, j) for j in range(len(matrix)) for i in range(j)]
    expected = sorted((float(p) for p, _, _ in products if p), reverse=True)[:k]
    assert sorted(pairs.products.abs().tolist(), reverse=True) == expected
    chosen = list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    assert len({frozenset(pair) for pair in chosen}) == len(chosen)
    for (i, j), product in zip(chosen, pairs.products.tolist(), strict=True):
        assert i != j
        assert matrix[i, j] == product


@pytest.mark.ci
@given(rows=whole, k=st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_the_sum_does_not_care_for_ties_or_for_the_order_of_features(
    rows: list[list[int]], k: int
) -> None:
    acts = torch.tensor(rows, dtype=torch.float64)
    expected = literal(acts, k) if acts.shape[1] > 1 else 0.0
    for order in (torch.arange(acts.shape[1]), torch.arange(acts.shape[1]).flip(0)):
        for closed_form in {False, bool((acts >= 0).all())}:
            for how in WAYS.values():
                assert co_activation(acts[:, order], k, closed_form=closed_form, **how) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.6])
@pytest.mark.parametrize(("features", "k"), [(2, 1), (24, 3), (150, 56), (150, 10**5), (600, 898)])
def test_every_way_gives_the_literal_sum_and_gradient(
    features: int, k: int, rate: float, signed: bool, dtype: torch.dtype
) -> None:
    acts = random_acts(features, 64, features, rate, dtype, signed)
    expected, expected_gradient = value_and_gradient(lambda leaf: literal(leaf, k), acts)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for how in WAYS.values():
        value, gradient = value_and_gradient(
            lambda leaf, how=how: co_activation(leaf, k, closed_form=False, **how), acts
        )
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
        scale = float(expected_gradient.abs().max())
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rate", [0.0, 0.002, 0.02, 0.5])
def test_the_closed_form_is_the_literal_sum_where_all_pairs_are_selected(
    rate: float, dtype: torch.dtype
) -> None:
    acts, k = random_acts(1, 64, 150, rate, dtype), 64 * 150 * 150
    acts[0, :2] = torch.tensor([1e4, 1e-3])  # whose product is lost in their squares
    expected, expected_gradient = value_and_gradient(lambda leaf: literal(leaf, k), acts)
    value, gradient = value_and_gradient(lambda leaf: co_activation(leaf, k), acts)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(
        gradient, expected_gradient * (acts != 0), rtol=0, atol=tolerance * scale
    )


@pytest.mark.parametrize(
    ("features", "rate"),
    [
        (4000, 0.01),
        pytest.param(16384, 0.005, marks=pytest.mark.slow),  # closed form: every pair is selected
        pytest.param(16384, 0.03, marks=pytest.mark.slow),
    ],
)
def test_independent_ways_agree_where_the_matrix_is_large(features: int, rate: float) -> None:
    acts = random_acts(2, 128, features, rate, torch.float32)
    k = int(0.005 * features * (features - 1) / 2)
    ways = [
        {"way": "sparse", "closed_form": False},
        {"way": "streamed", "closed_form": False},
        {"way": "streamed", "closed_form": False, "tile": 2**19},
        {},
    ]
    results = [
        value_and_gradient(lambda leaf, how=how: co_activation(leaf, k, **how), acts)
        for how in ways
    ]
    expected, expected_gradient = results[0]
    for how, (value, gradient) in zip(ways[1:], results[1:], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        # a pair at the bar may be another one, where products differ by rounding alone
        off = (gradient - expected_gradient).abs() > 1e-6 * expected_gradient.abs().max()
        if how.get("closed_form", True):
            off &= acts != 0  # all that the closed form gives a gradient to
        assert off.sum() <= 4 * len(acts)


def test_no_pairs_at_all() -> None:
    for acts in (torch.zeros(8, 5), torch.ones(8, 1), torch.eye(5)):
        for how in WAYS.values():
            for closed_form in (False, True):
                value, gradient = value_and_gradient(
                    lambda leaf, c=closed_form, how=how: co_activation(
                        leaf, 3, closed_form=c, **how
                    ),
                    acts,
                )
                assert value == 0
                assert not gradient.any()


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("how", [{"way": "sparse"}, {"way": "streamed", "tile": 2**16}])
@pytest.mark.parametrize("rate", [0.002, 0.5])
def test_no_tensor_has_the_size_of_the_matrix(how: dict[str, Any], rate: float) -> None:
    if how["way"] == "sparse" and rate > 0.1:
        pytest.skip("never chosen")
    features, k = 3000, 1000
    acts = random_acts(3, 32, features, rate, torch.float32)
    with Largest() as largest:
        value_and_gradient(lambda leaf: co_activation(leaf, k, closed_form=False, **how), acts)
    assert 0 < largest.bytes < features**2 * 4 / 8
