"""The co-activation penalty: its contract, the adaptive weight, and what it does to a SAE."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_plugins import hookimpl, plugins
from sae_plugins.base.errors import PluginError
from sae_plugins.framework.plugin import Plugin
from sae_plugins.mechanisms.coactivation_penalty import (
    CoactivationPenalty,
    adapted,
    normalised,
    number_of_pairs,
)
from sae_plugins.testing import (
    CASES,
    PluginContract,
    advance,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)


class TestContract(PluginContract):
    """The default finds its target at step 10 of 12."""

    plugin = "coactivation-penalty"
    options = {"fraction": 0.05}


class TestContractOfCosines(PluginContract):
    plugin = "coactivation-penalty"
    options = {"fraction": 0.4, "normalisation": "cosine", "target": 1.0}


class TestContractOfCorrelations(PluginContract):
    plugin = "coactivation-penalty"
    options = {"fraction": 0.4, "normalisation": "correlation", "reduce": "mean", "target": 1.0}


class TestContractOfTheMethod(PluginContract):
    plugin = "adaptive-orthogonality"


def test_k_is_half_a_percent_of_all_pairs() -> None:
    assert number_of_pairs(2304, 0.005) == 13265
    assert number_of_pairs(16384, 0.005) == 671047
    assert number_of_pairs(4, 0.005) == 1


def by_hand(acts: torch.Tensor, normalisation: str) -> torch.Tensor:
    """|C_ij| for i < j, in descending order."""
    if normalisation == "correlation":
        matrix = torch.corrcoef(acts.T)
    else:
        matrix = acts.T @ acts / (len(acts) if normalisation == "batch" else 1)
        if normalisation == "cosine":
            matrix = matrix / acts.norm(dim=0).outer(acts.norm(dim=0))
    rows, columns = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[rows, columns].abs().sort(descending=True).values


class Spy(Plugin):
    """Keeps activations, loss terms and weights of every step."""

    name = "spy"
    after = ("coactivation-penalty",)

    @hookimpl
    def attached(self, run: Any) -> None:
        self.acts: list[torch.Tensor] = []
        self.terms: list[dict[str, float]] = []
        self.weights: list[float] = []

    @hookimpl
    def step_ended(self, run: Any, output: Any) -> None:
        self.acts.append(output.feature_acts.detach().to_dense())
        self.terms.append({name: float(value) for name, value in output.losses.items()})
        if "coactivation-penalty/tau" in run.metrics:
            self.weights.append(float(run.metrics["coactivation-penalty/tau"]))


def spied(architecture: str = "standard", steps: int = 12, **options: Any) -> Any:
    trainer = train(
        CoactivationPenalty,
        Spy,
        architecture=architecture,
        options={"coactivation-penalty": options},
        steps=steps,
        dtype=torch.float64,
    )
    return trainer, trainer.host.plugins[1]


@pytest.mark.parametrize("architecture", CASES)
@pytest.mark.parametrize("normalisation", ["batch", "cosine", "correlation", "raw"])
def test_the_term_is_tau_times_the_sum_over_the_top_pairs(
    architecture: str, normalisation: str
) -> None:
    _, spy = spied(
        architecture,
        steps=2,
        fraction=0.1,
        normalisation=normalisation,
        tau=0.03,
        adaptive=False,
    )
    for acts, terms in zip(spy.acts, spy.terms, strict=True):
        assert (acts != 0).any()
        products = by_hand(acts[:, (acts != acts[0]).any(dim=0)], normalisation)
        expected = 0.03 * products[: int(0.1 * 24 * 23 / 2)].sum()
        assert terms["coactivation-penalty/pairs"] == pytest.approx(float(expected), rel=1e-9)


def test_mean_divides_by_the_number_of_pairs() -> None:
    fixed = {"fraction": 0.1, "adaptive": False}
    _, total = spied(steps=1, **fixed)
    _, mean = spied(steps=1, reduce="mean", **fixed)
    name = "coactivation-penalty/pairs"
    assert total.terms[0][name] == pytest.approx(27 * mean.terms[0][name], rel=1e-12)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_weight_follows_equation_3(accumulate: int) -> None:
    options = {"target": 2.0, "gain": 0.3, "tau_max": 0.3}
    trainer = train(
        CoactivationPenalty,
        Spy,
        options={"coactivation-penalty": options},
        training={"accumulate": accumulate},
        dtype=torch.float64,
    )
    spy = trainer.host.plugins[1]
    weight = 0.05
    for terms, seen in zip(spy.terms, spy.weights, strict=True):
        assert seen == pytest.approx(weight, rel=1e-12)
        weight = min(max(weight * (2.0 / terms["mse_loss"]) ** 0.3, 0.01), 0.3)
    assert trainer.run.summary["coactivation-penalty/tau"] == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(("target", "bound"), [(1e-6, 0.01), (1e6, 0.2)])
def test_a_target_out_of_reach_takes_the_weight_to_a_bound(target: float, bound: float) -> None:
    trainer, spy = spied(target=target)
    assert spy.weights[0] == 0.05
    assert spy.weights[1:] == [bound] * 11
    at = "min" if bound == 0.01 else "max"
    assert trainer.run.summary[f"coactivation-penalty/share_at_tau_{at}"] == 1


@given(
    weight=st.floats(0, 1),
    loss=st.floats(0, allow_nan=False, width=32),
    target=st.floats(1e-6, 1e6),
    gain=st.floats(0.01, 1),
    low=st.floats(0, 0.5),
    more=st.floats(0, 1),
)
def test_the_weight_never_leaves_its_range(
    weight: float, loss: float, target: float, gain: float, low: float, more: float
) -> None:
    low, high = torch.tensor([low, low + more]).tolist()
    tensors = (torch.tensor(value) for value in (weight, loss, target))
    assert low <= adapted(*tensors, gain, low, high) <= high


def test_the_first_weight_is_inside_its_range_too() -> None:
    assert spied(steps=1, tau=0.9)[1].weights[0] == 0.2


def test_the_target_is_the_loss_at_the_end_of_the_warm_up_and_stays() -> None:
    batches = tiny_batches(steps=30, dtype=torch.float64)
    with plugins(CoactivationPenalty, Spy):
        sae = tiny_sae("standard", dtype=torch.float64)
        trainer = tiny_trainer(sae, batches, lr_warm_up_steps=20)
    plugin, spy = trainer.host.plugins
    average = None
    for step, batch in enumerate(batches, start=1):
        advance(trainer, [batch])
        loss = spy.terms[-1]["mse_loss"]
        if step <= 20:
            average = loss if average is None else 0.9 * average + 0.1 * loss
            assert float(plugin.tau) == 0.05
        assert float(plugin.target) == pytest.approx(average, rel=1e-12)
    assert spy.weights[21] != 0.05


@pytest.mark.parametrize("target", [None, 2.0])
def test_the_target_is_a_share_of_that_loss_where_none_is_given(target: float | None) -> None:
    options = {"gain": 0.3, "tau_max": 0.3, "target": target, "target_share": 0.9}
    _, spy = spied(steps=16, **options)
    losses, average, weight = [terms["mse_loss"] for terms in spy.terms], None, 0.05
    for step, (loss, seen) in enumerate(zip(losses, spy.weights, strict=True), start=1):
        assert seen == pytest.approx(weight, rel=1e-12)
        if target is None and step <= 10:
            average = loss if average is None else 0.9 * average + 0.1 * loss
        else:
            goal = 0.9 * average if target is None else target
            weight = min(max(weight * (goal / loss) ** 0.3, 0.01), 0.3)
    assert weight != 0.05


def test_a_run_that_ends_before_there_is_a_target_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer, _ = spied(steps=8)
    assert "will not adapt; give --coactivation-penalty.target" in caplog.text
    assert "coactivation-penalty/share_at_tau_min" not in trainer.run.summary
    caplog.clear()
    spied(steps=8, target=1.0)
    spied(steps=8, adaptive=False)
    assert "will not adapt" not in caplog.text


@pytest.mark.parametrize("tau_max", [{"tau_max": 0.1}, {}])
def test_a_range_that_is_upside_down_is_refused(tau_max: dict[str, float]) -> None:
    options = {"coactivation-penalty": {"tau_min": 0.3, **tau_max}}
    with pytest.raises(
        PluginError, match=r"--coactivation-penalty\.tau_max 0\.[12]: it is below tau_min = 0\.3"
    ):
        train(CoactivationPenalty, options=options)


def test_sparse_activations_give_what_dense_ones_do() -> None:
    def trained(sparse: bool) -> torch.Tensor:
        batches = tiny_batches(steps=3, dtype=torch.float64)
        with plugins(CoactivationPenalty, options={"coactivation-penalty": {"fraction": 0.3}}):
            # SAELens itself cannot train sparse activations that it rescales
            sae = tiny_sae(
                "topk",
                dtype=torch.float64,
                use_sparse_activations=sparse,
                rescale_acts_by_decoder_norm=False,
            )
            trainer = tiny_trainer(sae, batches)
        advance(trainer, batches)
        return trainer.sae.W_dec

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-9, atol=1e-12)


def test_it_makes_features_fire_together_less() -> None:
    def together(tau: float) -> float:
        _, spy = spied(steps=60, fraction=0.2, tau=tau, adaptive=False)
        return float(by_hand(spy.acts[-1], "batch")[:55].sum())

    assert together(0.5) < 0.7 * together(0.0)


def test_the_weight_and_the_sums_stay_float32_under_autocast() -> None:
    kept: list[torch.Tensor] = []

    class Dtypes(Plugin):
        name = "dtypes"

        @hookimpl
        def step_ended(self, output: Any) -> None:
            kept.append(output.losses["coactivation-penalty/pairs"])

    trainer = train(CoactivationPenalty, Dtypes, autocast=True)
    plugin = trainer.host.plugins[0]
    assert {tensor.dtype for tensor in (*kept, plugin.tau, plugin.target)} == {torch.float32}


def test_a_constant_column_correlates_with_nothing() -> None:
    acts = torch.rand(64, 3)
    acts[:, 1], acts[:, 2] = 0.3, 0.0
    unit = normalised(acts, "correlation")
    assert (unit.T @ unit).fill_diagonal_(0).abs().max() < 0.02
