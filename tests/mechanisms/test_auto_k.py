"""A k that is found while training."""

from __future__ import annotations

import logging
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_plugins import plugins
from sae_plugins.mechanisms import auto_k
from sae_plugins.mechanisms.auto_k import SMOOTHED, AutoK, crowding, nearness, valley
from sae_plugins.mechanisms.decoder_orthogonality import nearest
from sae_plugins.testing import PluginContract, advance, tiny_batches, tiny_sae, tiny_trainer

HALF = SMOOTHED // 2
BATCHES = tiny_batches(steps=60)
QUICK = {"start": 0, "until": 50}


class TestActivations(PluginContract):
    """The search is under way at the checkpoint."""

    plugin = AutoK
    options = {"start": 1, "until": 18}


class TestRows(PluginContract):
    plugin = AutoK
    options = {"start": 1, "until": 12, "watch": "rows"}


def test_crowding_is_least_where_activations_stand_apart() -> None:
    draws = torch.Generator().manual_seed(0)
    pre = 0.3 * torch.randn(400, 50, generator=draws)  # what is left of features
    pre[:, :3] += 5  # three that are there
    slopes = {k: crowding(pre, k) for k in (1.5, 2, 3, 4, 6, 10)}
    assert min(slopes, key=slopes.__getitem__) == 3
    assert slopes[3] < 0.1


def test_crowding_is_the_exponent_of_a_power_law() -> None:
    acts = (torch.arange(1, 100_001, dtype=torch.float64) / 100_000) ** -0.5  # N(> a) ~ a^-2
    assert crowding(acts.reshape(1000, 100), 5.0) == pytest.approx(2.0, rel=1e-3)


def test_crowding_needs_as_many_activations_as_k() -> None:
    assert math.isnan(crowding(torch.tensor([[1.0, -1.0, -1.0]]), 2))


@given(n=st.integers(2, 9), d=st.integers(2, 5), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_nearness_is_the_mean_of_largest_cosines(n: int, d: int, seed: int) -> None:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2).abs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto_k, "nearest", partial(nearest, tile=2))
        found = nearness(rows)
    assert found == pytest.approx(float(cosines.fill_diagonal_(0).amax(dim=1).mean()), abs=1e-5)


def test_a_valley_is_where_both_sides_are_higher() -> None:
    falls, flat = [3.0 - 0.1 * i for i in range(20)], [1.0] * 40
    rises = [1 + 0.2 * i for i in range(30)]
    found = valley([*falls, *flat, *rises], 0.5)
    assert found is not None
    assert len(falls) < found <= len(falls) + len(flat) + HALF
    assert valley([*falls, *flat], 0.5) is None
    assert valley([*flat, *rises], 0.5) is None
    assert valley([1.0] * (SMOOTHED - 1), 0.5) is None


def test_a_shallow_valley_before_a_deep_one_is_passed() -> None:
    curve = [2.0] * 30 + [1.5] * 30 + [1.8] * 30 + [1.0] * 30 + [2.0] * 30
    found = valley(curve, 0.5)
    assert found is not None
    assert 90 + HALF <= found < 120


def searched(
    values: list[float], monkeypatch: pytest.MonkeyPatch, architecture: str = "topk"
) -> list[float]:
    """The k of each step of a run whose looks give `values`, and its summary."""
    looks = iter(values)
    monkeypatch.setattr(auto_k, "crowding", lambda *_: next(looks, 9.0))
    monkeypatch.setattr(auto_k, "SMOOTHED", 3)
    with plugins(AutoK, options={"auto-k": {**QUICK, "least": 0.2}}):
        trainer = tiny_trainer(tiny_sae(architecture, k=20), BATCHES)
    ks = []
    for batch in BATCHES:
        advance(trainer, [batch])
        ks.append(trainer.sae.cfg.k)
    return ks, trainer.run.summary


def test_k_falls_and_goes_back_to_where_it_was_best(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    values = [5.0 - 0.15 * i for i in range(25)] + [1 + 0.4 * i for i in range(25)]
    ks, summary = searched(values, monkeypatch, "batchtopk")
    assert ks[0] == pytest.approx(20 * 0.2 ** (1 / 50))
    lowest = ks.index(min(ks))
    assert ks[: lowest + 1] == sorted(ks[: lowest + 1], reverse=True)
    assert set(ks[lowest + 1 :]) == {ks[-1]}
    tried, factor = ks[: lowest + 1], AutoK.Options().factor
    best = min(tried, key=lambda k: abs(k - ks[-1] / factor))
    assert ks[-1] == pytest.approx(factor * best)
    assert best == pytest.approx(20 * 0.2 ** (26 / 50), rel=0.1)
    assert summary["auto-k/distinct"] == 1
    assert summary["auto-k/k"] == pytest.approx(ks[-1])
    assert "the run goes on with a k of" in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        [1 + 0.1 * i for i in range(50)],  # the given k is the best, or even larger ones are
        [9 - 0.1 * i for i in range(50)],
        [1.0] * 50,
        [math.nan] * 50,
    ],
)
def test_without_a_distinct_minimum_the_given_k_comes_back(
    values: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ks, summary = searched(values, monkeypatch)
    assert ks[-1] == 20
    assert summary == {"auto-k/distinct": 0, "auto-k/k": 20}
    assert "is distinctly better than those on both sides" in caplog.text
