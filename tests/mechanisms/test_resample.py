"""Resampling of dead features: which are dead, what they see, and that nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.training.activation_scaler import ActivationWhitening

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.framework.features import Reset
from sae_plugins.mechanisms.resample import Resample, dead_features, draw_rows
from sae_plugins.testing import (
    CASES,
    D_IN,
    D_SAE,
    PluginContract,
    advance,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)

WINDOW = {"firing-window": {"window": 4}}


class WindowedContract(PluginContract):
    """The contract, with a window that is short enough for its runs."""

    def _options(self) -> Any:
        return {**super()._options(), **WINDOW}


class TestContract(WindowedContract):
    plugin = Resample
    options = {"per": "token", "threshold": 0.5}


class TestFromResidualsUntilTheEnd(WindowedContract):
    plugin = Resample
    options = {"per": "token", "threshold": 0.4, "direction": "residual", "stop": None}


@pytest.mark.parametrize("contract", [TestContract, TestFromResidualsUntilTheEnd])
@pytest.mark.parametrize("architecture", CASES)
def test_the_contracts_do_resample(architecture: str, contract: Any) -> None:
    options = {"resample": contract.options, **WINDOW}
    trainer = train(Resample, architecture=architecture, options=options)
    assert trainer.run.summary["resample/features"] > 0


# -- the draw ----------------------------------------------------------------------------------


@given(
    errors=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 50.0]), min_size=1, max_size=12),
    count=st.integers(1, 20),
)
@settings(max_examples=50, deadline=None)
def test_rows_without_error_are_not_drawn_and_others_once_if_they_suffice(
    errors: list[float], count: int
) -> None:
    rows = draw_rows(torch.tensor(errors), count, torch.Generator().manual_seed(0)).tolist()
    assert len(rows) == count
    wrong = [row for row, error in enumerate(errors) if error > 0]
    assert set(rows) <= set(wrong or range(len(errors)))
    if count <= len(wrong):
        assert len(set(rows)) == count


def test_rows_are_drawn_in_proportion_to_their_error() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [int(draw_rows(torch.tensor([1.0, 3.0, 4.0]), 1, generator)) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(draws)).float() / 4000
    assert shares.tolist() == pytest.approx([1 / 8, 3 / 8, 4 / 8], abs=0.03)


def test_errors_that_are_not_finite_are_not_drawn() -> None:
    errors = torch.tensor([float("nan"), 1.0, float("inf")])
    assert draw_rows(errors, 3, torch.Generator()).tolist() == [1, 1, 1]


# -- in training -------------------------------------------------------------------------------


class Spy(Plugin):
    """Keeps features 3 and 20 silent until step 4, and notes what was reset, when and from what."""

    name = "spy"
    after = ("resample",)
    silent = (3, 20)

    @hookimpl
    def attached(self, run):
        self.resets: list[tuple[int, list[int]]] = []
        with torch.no_grad():
            run.sae.b_enc[list(self.silent)] = -1e3

    @hookimpl
    def step_ended(self, run, output):
        self.output = output
        self.b_dec = run.sae.b_dec.detach().clone()
        self.before = snapshot(run._trainer)

    @hookimpl
    def features_changed(self, run, change):
        assert isinstance(change, Reset)
        self.resets.append((run.step, change.index.tolist()))
        self.decoder = run.sae.W_dec[change.index].detach().clone()
        self.after = snapshot(run._trainer)


WHITENING = ActivationWhitening(
    mean=torch.linspace(-1, 3, D_IN, dtype=torch.float64),
    matrix=torch.eye(D_IN, dtype=torch.float64) + torch.ones(D_IN, D_IN).double().triu(1) / 4,
    inverse_matrix=torch.eye(D_IN, dtype=torch.float64),  # not used in training
)


def resampled(
    steps: int = 4,
    accumulate: int = 1,
    architecture: str = "standard",
    sae: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Train on inputs with a mean of their own, which the trainer normalises as `sae` says."""
    config = {"l1_coefficient": 1e-4} if architecture == "standard" else {}
    batches = [7 * batch + 2 for batch in tiny_batches(steps=steps, dtype=torch.float64)]
    with plugins(
        Resample,
        Spy,
        options={"resample": {"stop": None, **options}, **WINDOW},
        training={"accumulate": accumulate},
    ):
        its_sae = tiny_sae(architecture, dtype=torch.float64, **config, **(sae or {}))
        trainer = tiny_trainer(its_sae, batches, dead_feature_window=10**6)
    normalize = its_sae.cfg.normalize_activations
    if normalize == "expected_average_only_in":
        trainer.activation_scaler.scaling_factor = 0.25
    elif normalize == "covariance_whitening":
        trainer.activation_scaler.whitening = WHITENING
    advance(trainer, batches)
    trainer.set_final_sae_metadata()
    return trainer, trainer.run.plugin("spy")


def test_dead_features_start_anew_and_nothing_else_moves() -> None:
    trainer, spy = resampled()
    assert spy.resets == [(4, [3, 20])]
    assert trainer.run.summary["resample/features"] == 2
    rest = torch.tensor([i for i in range(D_SAE) if i not in (3, 20)])
    reset = torch.tensor([3, 20])
    for entry in trainer.run.features.tracked():
        before, after = spy.before[entry.name], spy.after[entry.name]
        for axis in entry.axes:
            kept = before.index_select(axis, rest), after.index_select(axis, rest)
            assert torch.equal(*kept), entry.name
            if entry.name.startswith("exp_avg"):
                assert not after.index_select(axis, reset).any(), entry.name
    acts = trainer.sae.encode(spy.output.sae_in)
    assert (acts[:, [3, 20]] > 0).any(dim=0).all()  # they fire again


def test_other_features_outputs_are_bitwise_unchanged() -> None:
    outputs = []

    class Before(Plugin):
        name = "before"

        @hookimpl
        def step_ended(self, run, output):
            outputs.append(run.sae.encode(output.sae_in).detach())

        @hookimpl
        def features_changed(self, run):
            outputs.append(run.sae.encode(batches[-1]).detach())

    batches = tiny_batches(steps=4)
    with plugins(Before, Resample, options={"resample": {"threshold": 1, "stop": None}, **WINDOW}):
        trainer = tiny_trainer(tiny_sae("standard", l1_coefficient=1.0), batches)
    with torch.no_grad():
        trainer.sae.b_enc[[2, 5]] = -1e3
    advance(trainer, batches)
    before, after = outputs[-2:]
    moved = (before != after).any(dim=0).nonzero()[:, 0].tolist()
    assert moved == [2, 5]


NORMALISATIONS = (
    "none",
    "expected_average_only_in",
    "constant_norm_rescale",
    "layer_norm",
    "covariance_whitening",
)


def normalised(raw: torch.Tensor, normalize: str) -> torch.Tensor:
    """What the SAE sees of raw inputs, by SAELens' documentation and not by its code."""
    if normalize == "expected_average_only_in":
        return 0.25 * raw
    if normalize == "constant_norm_rescale":
        return D_IN**0.5 * raw / raw.norm(dim=1, keepdim=True)
    if normalize == "layer_norm":
        centred = raw - raw.mean(dim=1, keepdim=True)
        return centred / (centred.std(dim=1, keepdim=True) + 1e-5)
    if normalize == "covariance_whitening":
        return (raw - WHITENING.mean) @ WHITENING.matrix
    return raw


@pytest.mark.parametrize("direction", ["input", "residual"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize(
    ("architecture", "normalize"),
    [
        *(("standard", normalize) for normalize in NORMALISATIONS),
        *(("batchtopk", normalize) for normalize in ("none", "covariance_whitening")),
    ],
)
def test_directions_come_from_what_the_sae_saw(
    architecture: str, normalize: str, apply_b_dec: bool, direction: str
) -> None:
    config = {"normalize_activations": normalize, "apply_b_dec_to_input": apply_b_dec}
    _, spy = resampled(architecture=architecture, sae=config, direction=direction)
    raw = 7 * tiny_batches(steps=4, dtype=torch.float64)[-1] + 2
    assert spy.b_dec.norm() > 0.01
    candidates = normalised(raw, normalize) - spy.b_dec
    if direction == "residual":
        rows, acts = spy.before["W_dec"], spy.output.feature_acts
        if architecture == "batchtopk":  # whose activations are those of rows of norm 1
            rows = rows / rows.norm(dim=1, keepdim=True)
        assert (acts @ rows).norm(dim=1).max() > 0.3
        candidates = candidates - acts @ rows
    cosines = (
        torch.nn.functional.normalize(spy.decoder, dim=1)
        @ torch.nn.functional.normalize(candidates, dim=1).T
    )
    best = cosines.max(dim=1)
    assert best.values.tolist() == pytest.approx([1, 1], abs=1e-9)
    assert best.indices.unique().numel() == 2


def test_a_request_inside_an_accumulation_window_waits_for_its_end() -> None:
    _, spy = resampled(steps=6, accumulate=3)
    assert spy.resets == [(6, [3, 20])]


def test_which_features_are_dead() -> None:
    window = train("firing-window", options=WINDOW, steps=4).run.plugin("firing-window")
    window.age[:6] = torch.tensor([4, 4, 4, 3, 3, 9])
    window.steps_fired[:6] = torch.tensor([0, 1, 2, 0, 1, 0])
    window.tokens_fired[:6] = torch.tensor([0, 1, 20, 0, 1, 0])

    def dead(*rule: Any) -> list[int]:
        return dead_features(window, *rule)[:6].nonzero()[:, 0].tolist()

    assert dead("window", "step", 0.01) == [0, 5]
    assert dead("window", "step", 0.25) == [0, 5]  # 1 step of 4 is not below
    assert dead("window", "step", 0.26) == [0, 1, 5]
    assert dead("window", "token", 0.01) == [0, 1, 5]
    assert dead("window", "step", 0.0) == []
    assert dead("since-check", "step", 0.01) == [0, 3, 5]


def test_it_stops_at_a_step_or_a_share_of_the_training() -> None:
    for stop, expected in ((0.5, [4]), (0.49, []), (4, [4]), (3, []), (None, [4])):
        _, spy = resampled(steps=8, stop=stop)
        assert [step for step, _ in spy.resets] == expected


def test_nothing_is_drawn_where_nothing_is_dead() -> None:
    trainer, spy = resampled(threshold=0.0)
    assert spy.resets == []
    resample = trainer.run.plugin("resample")
    fresh = train(Resample, steps=1, options=WINDOW).run.plugin("resample")
    assert torch.equal(resample.rng.get_state(), fresh.rng.get_state())
    assert "resample/features" in trainer.run.summary
    assert trainer.sae.W_dec.shape == (D_SAE, D_IN)
