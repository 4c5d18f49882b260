"""The largest entries are the largest entries, whatever is equal and however few there are."""

from __future__ import annotations

import pytest
import torch
from sae_lens.saes.batchtopk_sae import BatchTopK
from torch import Tensor

from sae_plugins.framework.fast.topk import batch_top_k, top_k


def of_kind(kind: str, rows: int, n: int) -> Tensor:
    x = torch.randn(rows, n)
    return {
        "all differ": x,
        "many equal": x.round(),
        "all equal": torch.ones_like(x),
        "few above 0": torch.where(torch.rand(rows, n) < 1e-3, x.abs(), -x.abs()),
        "rows repeat": x[:1].repeat(rows, 1),
        "one large row": x - 5 * torch.arange(rows)[:, None],
    }[kind]


KINDS = ("all differ", "many equal", "all equal", "few above 0", "rows repeat", "one large row")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(4096, 8), (4096, 300), (999, 5), (64, 64), (2048, 1)])
def test_the_largest_of_each_row(kind: str, n: int, k: int) -> None:
    x = of_kind(kind, 6, n)
    found = top_k(x, k)
    assert all(len(set(row)) == k for row in found.tolist())
    values = x.gather(1, found).sort(descending=True).values
    assert torch.equal(values, x.topk(k).values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 24), (64, 4096), (300, 1000)])
@pytest.mark.parametrize("k", [0, 0.01, 2, 20])
def test_the_largest_of_a_batch_are_those_of_sae_lens(
    kind: str, shape: tuple[int, int], k: float
) -> None:
    x = of_kind(kind, *shape)
    theirs = BatchTopK(k)(x).flatten().nonzero().squeeze(1)
    assert torch.equal(batch_top_k(x, int(k * len(x))), theirs)


@pytest.mark.parametrize("kind", ["all differ", "few above 0"])
def test_more_than_there_are_is_an_error_as_in_sae_lens(kind: str) -> None:
    x = of_kind(kind, 6, 24)
    for largest in (BatchTopK(25), lambda x: batch_top_k(x, 25 * 6), lambda x: top_k(x, 25)):
        with pytest.raises((RuntimeError, IndexError)):
            largest(x)


def test_nan_is_chosen_so_that_a_loss_shows_it() -> None:
    x = torch.randn(64, 4096)
    x[3, 5] = float("nan")
    assert 3 * 4096 + 5 in batch_top_k(x, 100)
    assert 5 in top_k(x, 4)[3]
