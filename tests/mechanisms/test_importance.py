"""Importance scores, and how often features fire: against autograd and averages made by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.framework.losses import LOSS_FORMS
from sae_plugins.mechanisms.firing_frequency import FiringFrequency
from sae_plugins.mechanisms.importance import Importance, column_norms, importance
from sae_plugins.testing import (
    CASES,
    PluginContract,
    advance,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)


class User(Plugin):
    """Uses the scores, so that they are measured."""

    name = "user"
    requires = ("importance",)

    @hookimpl
    def attached(self, run: Any) -> None:
        run.plugin("importance").use(run)

    @hookimpl
    def extra_losses(self, run: Any) -> dict[str, Any]:
        scores = run.plugin("importance").relative_scores(run).to(run.sae.W_dec.dtype)
        return {"weighted": 0.01 * (scores[:, None] * run.sae.W_dec**2).sum()}


class TestImportance(PluginContract):
    plugin = User


class TestFiringFrequency(PluginContract):
    plugin = "firing-frequency"


@given(st.integers(1, 700), st.integers(1, 5), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=25, deadline=None)
def test_column_norms(tokens: int, features: int, dtype: torch.dtype) -> None:
    gradient = torch.randn(tokens, features, dtype=dtype) * 1e-5
    found = column_norms(gradient)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.linalg.vector_norm(gradient, dim=0))
    assert column_norms(gradient.bfloat16()).dtype == torch.float32


def test_scores_are_eq_3() -> None:
    scores = importance(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([0.1, 0.4, 0.0]))
    assert scores.tolist() == [0.5, 1.0, 0.0]
    assert importance(torch.ones(2), torch.zeros(2)).tolist() == [0, 0]  # not NaN


@pytest.mark.parametrize("form", LOSS_FORMS)
@pytest.mark.parametrize("architecture", CASES)
def test_the_gradient_is_that_of_the_reconstruction_loss_alone(
    architecture: str, form: str
) -> None:
    """By autograd, from the features' activations through the decoder and nothing else."""
    batches = tiny_batches(dtype=torch.float64)
    with plugins(User, training={"loss_form": form}):
        trainer: Any = tiny_trainer(tiny_sae(architecture, dtype=torch.float64), batches)
    advance(trainer, batches[:-1])
    reference = tiny_sae(architecture, dtype=torch.float64)
    reference.load_state_dict(trainer.sae.state_dict())
    acts = reference.encode(batches[-1]).detach().requires_grad_()
    loss = LOSS_FORMS[form](reference.decode(acts), batches[-1]).sum(dim=-1).mean()
    (gradient,) = torch.autograd.grad(loss, acts)
    advance(trainer, batches[-1:])
    found = trainer.run.plugin("importance").gradient_norms
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), gradient.norm(dim=0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("architecture", "form"),
    [*((name, "l2_norm") for name in CASES), *(("standard", form) for form in LOSS_FORMS)],
)
def test_the_closed_form_is_this_steps_gradient(architecture: str, form: str) -> None:
    """It is there before the step's backward pass; by autograd with the weights of the step."""
    (norms, expected) = closed_form(tiny_sae(architecture, dtype=torch.float64), form)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["constant_norm_rescale", "layer_norm"])
def test_the_closed_form_knows_what_is_undone_after_decoding(kind: str) -> None:
    sae = tiny_sae("standard", dtype=torch.float64, normalize_activations=kind)
    torch.testing.assert_close(*closed_form(sae), rtol=1e-6, atol=1e-9, check_dtype=False)


def closed_form(sae: Any, form: str = "l2_norm") -> tuple[torch.Tensor, torch.Tensor]:
    """The norms that a step's losses see, and those that autograd gives."""
    found: list[torch.Tensor] = []

    class Sees(Plugin):
        name = "sees"
        requires = ("importance",)

        @hookimpl
        def attached(self, run: Any) -> None:
            run.plugin("importance").use(run)

        @hookimpl
        def extra_losses(self, run: Any) -> None:
            found.append(run.plugin("importance").gradient_norms.clone())

    batches = tiny_batches(steps=3, dtype=torch.float64)
    options = {"importance": {"step": "this"}}
    with plugins(Sees, training={"loss_form": form}, options=options):
        trainer: Any = tiny_trainer(sae, batches)
    advance(trainer, batches[:-1])
    reference = copy.deepcopy(trainer.sae)
    advance(trainer, batches[-1:])
    acts = reference.encode(batches[-1]).detach().requires_grad_()
    loss = LOSS_FORMS[form](reference.decode(acts), batches[-1]).sum(dim=-1).mean()
    (gradient,) = torch.autograd.grad(loss, acts)
    return found[-1], gradient.norm(dim=0)


def test_other_passes_leave_the_scores_alone() -> None:
    trainer = train(User)
    kept = trainer.run.plugin("importance")
    before = kept.gradient_norms.clone()
    (batch,) = tiny_batches(7, steps=1)
    with torch.no_grad():
        trainer.sae(batch)
    assert torch.equal(kept.gradient_norms, before)


def test_a_copy_of_the_sae_decodes_with_its_own_weights() -> None:
    sae = train(User).sae
    clone = copy.deepcopy(sae)
    clone.W_dec.data.zero_()
    acts = torch.ones(2, sae.cfg.d_sae)
    assert torch.equal(clone.decode(acts), clone.b_dec.expand(2, -1))
    assert not torch.equal(sae.decode(acts), sae.b_dec.expand(2, -1))


def test_unused_it_is_not_measured() -> None:
    trainer = train(Importance)
    assert "decode" not in vars(trainer.sae)
    assert torch.equal(trainer.sae.W_dec, train().sae.W_dec)


def test_relative_scores_are_ones_until_something_is_known() -> None:
    trainer = train(User, steps=1)
    kept = trainer.run.plugin("importance")
    scores = kept.relative_scores(trainer.run)
    assert scores.max() == 1
    assert 0 <= scores.min() < 1
    kept.gradient_norms.zero_()
    assert kept.relative_scores(trainer.run).tolist() == [1] * 24


@pytest.mark.ci
def test_it_is_measured_under_compilation_and_with_sparse_activations() -> None:
    eager, compiled = (train_one(compiles) for compiles in (False, True))
    torch.testing.assert_close(eager, compiled)
    sae = tiny_sae("topk", use_sparse_activations=True, rescale_acts_by_decoder_norm=False)
    dense = tiny_sae("topk", rescale_acts_by_decoder_norm=False)
    torch.testing.assert_close(train_one(False, sae), train_one(False, dense))


def train_one(compiles: bool, sae: Any = None) -> torch.Tensor:
    batches = tiny_batches(steps=3)
    with plugins(User):
        trainer: Any = tiny_trainer(tiny_sae("standard") if sae is None else sae, batches)
    if compiles:
        trainer.sae.training_forward_pass = torch.compile(
            trainer.sae.training_forward_pass, backend="aot_eager"
        )
    advance(trainer, batches)
    norms: torch.Tensor = trainer.run.plugin("importance").gradient_norms
    assert (norms > 0).any()
    return norms


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_frequencies_are_bias_corrected_averages(decay: float) -> None:
    shares: list[torch.Tensor] = []

    class Spy(Plugin):
        name = "spy"

        @hookimpl
        def step_ended(self, run: Any, output: Any) -> None:
            shares.append((output.feature_acts != 0).float().mean(dim=0))

    trainer = train(FiringFrequency, Spy, options={"firing-frequency": {"decay": decay}})
    weights = torch.tensor([decay ** (11 - step) for step in range(12)], dtype=torch.float64)
    weights /= weights.sum()
    stacked = torch.stack(shares).double()
    mean = (weights[:, None] * stacked).sum(dim=0)
    frequency = trainer.run.plugin("firing-frequency")
    torch.testing.assert_close(frequency.mean().double(), mean, rtol=1e-4, atol=1e-6)
    bernoulli = mean * (1 - mean)
    torch.testing.assert_close(
        frequency.bernoulli_variance().double(), bernoulli, rtol=1e-4, atol=1e-6
    )
    square = (weights[:, None] * stacked.square()).sum(dim=0)
    relative = (square - mean**2) / mean.square().clamp_min(1e-12)
    found = frequency.relative_variance().double()
    torch.testing.assert_close(found, relative, rtol=1e-2, atol=1e-4)


def test_without_bias_correction_averages_begin_at_0() -> None:
    decay, options = 0.9, {"decay": 0.9, "bias_correction": False}
    corrected = train(FiringFrequency, options={"firing-frequency": {"decay": decay}})
    printed = train(FiringFrequency, options={"firing-frequency": options})
    one, other = (t.run.plugin("firing-frequency").mean() for t in (corrected, printed))
    torch.testing.assert_close(one * (1 - decay**12), other)
    assert other.max() > 0


def test_a_reset_feature_starts_over() -> None:
    index = torch.tensor([3])

    class Resetter(Plugin):
        name = "resetter"

        @hookimpl
        def step_ended(self, run: Any) -> None:
            if run.step == 11:
                run.features.reset(index, torch.ones(1, 8))

    trainer = train(FiringFrequency, Resetter)
    frequency = trainer.run.plugin("firing-frequency")
    others = torch.ones(24, dtype=torch.bool)
    others[index] = False
    mass = 1 - 0.999**12
    torch.testing.assert_close(frequency.mass[index], torch.tensor([0.001]))
    torch.testing.assert_close(frequency.mass[others], torch.full((23,), mass))
    share = trainer.run.firing_counts[index] / 32  # of the one step since
    torch.testing.assert_close(frequency.mean()[index], share)
