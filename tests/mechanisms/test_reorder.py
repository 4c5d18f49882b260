"""The reorder mechanism: its arithmetic, its triggers, and what it reports."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from sae_plugins import hookimpl
from sae_plugins.framework.features import Permuted
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.run import Run
from sae_plugins.mechanisms.order_report import (
    oscillating_share,
    rank_correlation,
    related_share,
)
from sae_plugins.mechanisms.reorder import (
    Reorder,
    activation_variance,
    cluster_order,
    frequency_order,
)
from sae_plugins.testing import PluginContract, train


class TestContract(PluginContract):
    plugin = Reorder
    options = {"start": 2, "interval": 5, "window": 2, "cooldown": 1}
    options |= {"look": 1, "unit": "mean", "threshold": 0.5, "statistic": "frequency"}


def test_frequency_variance_has_the_papers_unit_and_count_variance_is_tokens_squared_times_it():
    frequencies = torch.tensor([[0.1, 0.5], [0.3, 0.5]])
    frequency = activation_variance(frequencies, 100, "frequency", "mean")
    assert frequency == pytest.approx(np.var([0.1, 0.3], ddof=1) / 2)
    count = activation_variance(frequencies, 100, "count", "mean")
    assert count == pytest.approx(float(frequency) * 100**2)
    assert activation_variance(frequencies, 100, "count", "max") == pytest.approx(200)


def test_cv2_of_pure_sampling_noise_is_near_nothing_and_of_drift_is_not():
    generator = torch.Generator().manual_seed(0)
    rates = torch.full((10, 500), 0.05)
    tokens = 2000
    sampled = torch.bernoulli(rates[:, :, None].expand(-1, -1, tokens), generator=generator)
    steady = activation_variance(sampled.mean(dim=-1), tokens, "cv2", "weighted")
    drift = rates * torch.linspace(0.3, 1.7, 10)[:, None]
    drifting = activation_variance(drift, tokens, "cv2", "weighted")
    assert steady < 0.01
    assert drifting > 0.1


def test_features_that_never_fire_give_no_variance():
    silent = torch.zeros(10, 4)
    for statistic in ("cv2", "frequency", "count"):
        assert activation_variance(silent, 64, statistic, "weighted") == 0


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_frequency_order_is_a_descending_stable_permutation(values: list[float]):
    frequency = torch.tensor(values)
    order = frequency_order(frequency)
    assert sorted(order.tolist()) == list(range(len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-frequency[i].item(), i))
    assert order.tolist() == expected


def test_cluster_order_puts_features_that_fire_together_side_by_side():
    generator = torch.Generator().manual_seed(0)
    parents = torch.rand(400, 3, generator=generator) < torch.tensor([0.1, 0.4, 0.2])
    firing = parents[:, [0, 1, 2, 0, 1, 2, 0, 1, 2]]
    frequency = firing.float().mean(dim=0)
    order = cluster_order(frequency, firing)
    families = [int(i) % 3 for i in order]
    assert families == [1, 1, 1, 2, 2, 2, 0, 0, 0]  # the most frequent cluster first


@pytest.mark.parametrize("n", [1, 2, 5])
def test_cluster_order_of_silent_or_few_features_is_a_permutation(n: int):
    order = cluster_order(torch.zeros(n), torch.zeros(8, n, dtype=torch.bool))
    assert sorted(order.tolist()) == list(range(n))


@given(st.permutations(list(range(12))))
@settings(max_examples=50, deadline=None)
def test_rank_correlation_is_spearmans(order: list[int]):
    expected = spearmanr(order, range(12)).statistic
    assert rank_correlation(torch.tensor(order)) == pytest.approx(expected)


def test_oscillating_share_counts_features_that_move_back_and_forth():
    steady = torch.arange(100)
    swapped = steady.clone()
    swapped[[0, 50]] = steady[[50, 0]]
    assert oscillating_share(torch.stack([steady, swapped, steady])) is None
    assert oscillating_share(torch.stack([steady, swapped, steady, swapped])) == 0.02
    assert oscillating_share(torch.stack([steady] * 4)) == 0


def test_related_share_ignores_sign_and_length():
    rows = torch.tensor([[1.0, 0], [-3, 0.1], [0, 2]])
    assert related_share(rows, torch.tensor([0, 1]), torch.tensor([1, 2])) == 0.5


class Spy(Plugin):
    """Notes the steps at which features were permuted."""

    name = "spy"

    @hookimpl
    def attached(self, run: Run) -> None:
        self.steps: list[int] = []

    @hookimpl
    def features_changed(self, run: Run, change: object) -> None:
        assert isinstance(change, Permuted)
        self.steps.append(run.step)


def reordered_at(steps: int, accumulate: int = 1, **options: Any) -> tuple[list[int], Any]:
    trainer = train(
        Reorder, Spy, steps=steps, options={"reorder": options}, training={"accumulate": accumulate}
    )
    return trainer.host.plugins[1].steps, trainer


def test_periodic_reordering_happens_every_interval_from_start():
    at, _ = reordered_at(12, start=4, interval=4, adaptive=False)
    assert at == [4, 8, 12]
    at, _ = reordered_at(12, start=5, interval=4, adaptive=False)
    assert at == [8, 12]
    assert reordered_at(12, start=0, interval=0, adaptive=False)[0] == []


def test_a_reordering_due_inside_an_accumulation_window_happens_at_its_end():
    at, trainer = reordered_at(12, accumulate=3, start=4, interval=4, adaptive=False)
    assert at == [6, 9, 12]
    assert trainer.run.summary["reorder/largest_loss_change"] < 1e-5


def test_the_trigger_fires_only_above_the_threshold_and_after_the_cooldown():
    always = {"statistic": "count", "threshold": 0.0, "interval": 0, "start": 2, "window": 2}
    at, trainer = reordered_at(12, cooldown=4, **always)
    assert at == [4, 8, 12]
    assert trainer.run.summary["reorder/triggered"] == 3
    at, _ = reordered_at(12, cooldown=4, **{**always, "threshold": 1e12})
    assert at == []


def counts_of_each_step(steps: int) -> list[np.ndarray]:
    """How often each feature fires, by step; a reordering changes no more than its place."""

    class Counts(Plugin):
        name = "counts"

        @hookimpl
        def step_ended(self, run: Run) -> None:
            counts.append(run.firing_counts.double().numpy())

    counts: list[np.ndarray] = []
    train(Counts, steps=steps)
    return counts


@pytest.mark.parametrize(("statistic", "unit"), [("count", 1), ("frequency", 32)])
def test_the_trigger_is_eq_1_by_naive_loops(statistic: str, unit: int):
    counts = [step / unit for step in counts_of_each_step(20)]
    variances = {
        t: np.mean([np.var([counts[t - k - 1][i] for k in range(1, 6)], ddof=1) for i in range(24)])
        for t in range(6, 21)  # steps count from 1
    }
    tau = between(variances.values())
    expected = [t for t, v in variances.items() if v > tau]
    options = {"statistic": statistic, "reduction": "mean", "window": 5, "look": 1, "cooldown": 0}
    at, trainer = reordered_at(20, **options, threshold=tau, interval=0, start=0)
    assert at == expected
    assert 0 < trainer.run.summary["reorder/triggered"] == len(expected) < 15

    weight, mean, ratios = 0.0, 0.0, {}
    for t, v in variances.items():
        weight, mean = 0.9 * weight + 0.1, 0.9 * mean + 0.1 * v
        ratios[t] = v / (mean / weight)
    late = {t: ratio for t, ratio in ratios.items() if t >= 8}
    multiple = between(late.values())
    options |= {"decay": 0.9, "unit": "mean"}
    at, _ = reordered_at(20, **options, threshold=multiple, interval=0, start=8)
    assert at == [t for t, ratio in late.items() if ratio > multiple]
    assert 0 < len(at) < len(late)


def between(values: Any) -> float:
    """A number above the lower half of some and below the others."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return float(ordered[middle - 1] + ordered[middle]) / 2


def test_it_looks_once_a_window_or_as_often_as_it_is_told():
    looks: list[int] = []

    class Looks(Plugin):
        name = "looks"
        after = ("reorder",)

        @hookimpl
        def step_ended(self, run: Run) -> None:
            looks.extend([run.step] if "reorder/variance" in run.metrics else [])

    for look, expected in ((None, [4, 8, 12]), (1, list(range(4, 13))), (6, [6, 12])):
        looks.clear()
        options = {"window": 4, "look": look, "start": 0, "interval": 0, "threshold": 1e9}
        train(Reorder, Looks, options={"reorder": options})
        assert looks == expected


def test_after_a_reordering_positions_are_sorted_by_frequency():
    _, trainer = reordered_at(8, start=8, interval=8, adaptive=False)
    frequency = trainer.host.plugins[0].frequency
    assert torch.equal(frequency, frequency.sort(descending=True).values)
    assert not torch.equal(trainer.host.plugins[0].report.identity, torch.arange(len(frequency)))


def test_a_reordering_changes_neither_loss_nor_training_but_left_moments_do():
    plain = train(steps=12)
    _, moved = reordered_at(12, start=4, interval=4, adaptive=False)
    _, left = reordered_at(12, start=4, interval=4, adaptive=False, move_moments=False)
    identity = moved.host.plugins[0].report.identity
    assert torch.allclose(moved.sae.W_dec, plain.sae.W_dec[identity], atol=1e-6)
    assert torch.equal(moved.act_freq_scores, plain.act_freq_scores[identity])
    assert moved.run.summary["reorder/largest_loss_change"] < 1e-5
    identity = left.host.plugins[0].report.identity
    assert not torch.allclose(left.sae.W_dec, plain.sae.W_dec[identity], atol=1e-5)


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("merge", {"every": 6, "threshold": 0.5, "stop": None}),
        ("resample", {"per": "token", "threshold": 0.6, "stop": None}),
        ("activation-threshold", {"base": 0.5, "start": 6}),
    ],
)
def test_what_others_do_to_the_loss_at_the_same_step_is_not_put_down_to_the_order(other, options):
    reorder = {"start": 6, "interval": 6, "adaptive": False}
    options = {"reorder": reorder, other: options}
    if other != "activation-threshold":
        options["firing-window"] = {"window": 6}
    trainer = train("reorder", other, options=options, dtype=torch.float64)
    assert trainer.run.summary["reorder/reorderings"] == 2
    assert trainer.run.summary.get(f"{other}/features") != 0
    assert trainer.run.summary["reorder/largest_loss_change"] < 1e-12


def test_matryoshka_features_stay_within_their_prefix():
    trainer = train(
        Reorder,
        architecture="matryoshka_batchtopk",
        steps=8,
        options={"reorder": {"start": 4, "interval": 4, "adaptive": False}},
    )
    identity = trainer.host.plugins[0].report.identity
    for start, end in trainer.run.features.groups:
        assert sorted(identity[start:end].tolist()) == list(range(start, end))


def test_a_start_beyond_the_run_is_warned_about(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        at, trainer = reordered_at(4, start=2000)
    assert at == []
    assert "reorder does nothing in this run, which has 4 steps" in caplog.text
    assert trainer.run.summary["reorder/reorderings"] == 0
    assert trainer.run.summary["reorder/order_stable_from_step"] is None


def test_the_summary_holds_what_the_paper_reports():
    _, trainer = reordered_at(16, start=2, interval=2, adaptive=False)
    summary = trainer.run.summary
    assert summary["reorder/reorderings"] == 8
    assert 1 < summary["reorder/memory_ratio"] < 1.5
    assert 0 <= summary["reorder/oscillating_share"] <= 1
    assert 0 <= summary["reorder/related_neighbours"] <= 1
    above, below = (
        summary["reorder/features_firing_above_0.5"],
        summary["reorder/features_firing_below_0.01"],
    )
    assert 0 <= above + below <= trainer.sae.cfg.d_sae
