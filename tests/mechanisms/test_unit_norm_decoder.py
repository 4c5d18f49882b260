"""Unit-norm decoder rows: the projection, the renormalisation, and the two together in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_plugins import hookimpl, plugins
from sae_plugins.base.errors import PluginError
from sae_plugins.framework.plugin import Plugin
from sae_plugins.mechanisms.unit_norm_decoder import (
    UnitNormDecoder,
    normalise_,
    pull_on_lengths,
    remove_parallel_,
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
    plugin = "unit-norm-decoder"


def test_the_projected_gradient_is_orthogonal_to_its_row() -> None:
    rows = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    gradient = torch.randn(6, 4, dtype=torch.float64)
    along = (gradient * rows).sum(dim=1, keepdim=True)
    expected = gradient - along * rows
    assert (along.abs() > 1e-3).all()
    remove_parallel_(gradient, rows)
    assert torch.allclose((gradient * rows).sum(dim=1), torch.zeros(6, dtype=torch.float64))
    assert torch.allclose(gradient, expected)


def test_rows_are_scaled_to_one_and_zero_rows_stay() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-3]])
    normalise_(rows)
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))


@pytest.mark.parametrize("architecture", CASES)
def test_rows_have_norm_one_from_the_first_event_on(architecture: str) -> None:
    norms = []

    class Observer(Plugin):
        name = "observer"
        after = ("unit-norm-decoder",)

        @hookimpl
        def attached(self, run):
            norms.append(run.sae.W_dec.norm(dim=1))

        @hookimpl
        def step_ended(self, run):
            norms.append(run.sae.W_dec.norm(dim=1))

    train(Observer, UnitNormDecoder, architecture=architecture)
    assert len(norms) == 13
    torch.testing.assert_close(torch.stack(norms), torch.ones(13, 24), atol=1e-6, rtol=0)


DECAYS = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "weight_decay_form": "coupled"}]
F64 = torch.float64


class Seen(Plugin):
    """Keeps what Adam is given, and the cosines of the decoder's gradient with its rows."""

    name = "seen"
    before = ("unit-norm-decoder",)

    @hookimpl
    def attached(self):
        self.norms, self.cosines = [], []

    @hookimpl
    def before_update(self, run):
        gradients = [parameter.grad for parameter in run.sae.parameters()]
        self.norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm())
        decoder = run.sae.W_dec
        self.cosines.append(torch.cosine_similarity(decoder.grad, decoder, dim=1))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("decay", DECAYS, ids=str)
def test_what_adam_sees_only_turns_the_rows(decay: dict[str, Any], accumulate: int) -> None:
    """Whatever the weight decay, and for plugins that look before this one."""
    training = {**decay, "accumulate": accumulate}
    trainer = train(UnitNormDecoder, Seen, training=training, dtype=F64)
    seen = trainer.run.plugin("seen")
    assert len(seen.cosines) == 12 / accumulate
    assert torch.stack(seen.cosines).abs().max() < 1e-12
    only = train(UnitNormDecoder, Seen, training=training, dtype=F64, options=RENORMALISED)
    assert torch.stack(only.run.plugin("seen").cosines).abs().max() > 0.1


def test_the_clip_counts_only_what_turns_the_rows() -> None:
    """Where the bound is reached, it is reached by what is left."""
    seen = train(UnitNormDecoder, Seen, dtype=F64).run.plugin("seen")
    assert torch.stack(seen.norms[:3]).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


RENORMALISED = {"unit-norm-decoder": {"project": False}}


def by_hand(batches: list[Tensor], project: bool, accumulate: int, decay: dict[str, Any]) -> Any:
    """Project, clip, decay, Adam, renormalise."""
    sae = tiny_sae("standard", dtype=F64)
    w = dict(sae.named_parameters())
    w_enc, w_dec, b_enc, b_dec = (w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    strength, form = decay.get("weight_decay", 0), decay.get("weight_decay_form", "decoupled")
    adam = torch.optim.Adam(w.values(), lr=0.01)
    w_dec.data /= w_dec.data.norm(dim=1, keepdim=True)

    def remove_parallel() -> None:
        if project:
            w_dec.grad -= (w_dec.grad * w_dec.data).sum(dim=1, keepdim=True) * w_dec.data

    for start in range(0, len(batches), accumulate):
        adam.zero_grad()
        for batch in batches[start : start + accumulate]:
            acts = torch.relu((batch - b_dec) @ w_enc + b_enc)
            error = (acts @ w_dec + b_dec - batch).pow(2).sum(dim=1)
            sparsity = acts.sum(dim=1)  # the plain L1 norm, whose gradient lengthens no row
            ((error + 0.1 * sparsity).mean() / accumulate).backward()
        remove_parallel()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        for weight in w.values():
            if form == "coupled":
                weight.grad += strength * weight.data
            else:
                weight.data *= 1 - 0.01 * strength
        if form == "coupled":
            remove_parallel()
        adam.step()
        w_dec.data /= w_dec.data.norm(dim=1, keepdim=True)
    return w


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("decay", DECAYS, ids=str)
def test_equals_an_adam_written_by_hand(
    decay: dict[str, Any], accumulate: int, project: bool
) -> None:
    """By SAELens' own step, and by the fast one."""
    batches = tiny_batches(dtype=F64)
    expected = by_hand(batches, project, accumulate, decay)
    options = {} if project else RENORMALISED
    for fast in (False, True):
        training = {**decay, "accumulate": accumulate, "fast_step": fast}
        with plugins("unit-norm-decoder", options=options, training=training):
            trainer = tiny_trainer(tiny_sae("standard", dtype=F64), batches)
        advance(trainer, batches)
        for name, value in trainer.sae.named_parameters():
            torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=0)


def test_a_plugin_that_claims_nothing_cannot_project() -> None:
    class Stranger(Plugin):
        name = "stranger"

        @hookimpl
        def project(self, gradient):
            gradient.zero_()

    message = (
        r"'stranger' implements project\(\), which is for plugins that claim 'decoder_norm' or "
        "'encoder': add what it is about to its claims"
    )
    with pytest.raises(PluginError, match=message):
        train(Stranger)


def test_another_owner_of_the_norm_projects_as_it_likes() -> None:
    class Frozen(Plugin):
        name = "frozen"
        claims = ("decoder_norm",)

        @hookimpl
        def project(self, run, gradient, rows):
            assert rows.equal(run.sae.W_dec)
            gradient.zero_()

    before = tiny_sae("standard").W_dec
    assert train(Frozen).sae.W_dec.equal(before)


def test_claims_the_decoders_norm() -> None:
    class Rival(Plugin):
        name = "rival"
        claims = ("decoder_norm",)

    with pytest.raises(PluginError, match="'unit-norm-decoder' and 'rival' both claim"):
        train(UnitNormDecoder, Rival)


@pytest.mark.parametrize("p", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_pull_on_lengths_is_the_derivative_of_the_loss(p: float, per_token: bool) -> None:
    acts = torch.rand(5, 3, dtype=F64) + 0.1
    coefficient = torch.rand(5, dtype=F64) if per_token else 0.1
    lengths = torch.ones(3, dtype=F64, requires_grad=True)
    loss = (coefficient * (acts * lengths).norm(p=p, dim=-1)).mean()  # as SAELens has it
    (expected,) = torch.autograd.grad(loss, lengths)
    torch.testing.assert_close(pull_on_lengths(acts, coefficient, p), expected)


def test_the_plain_l1_adds_nothing_to_the_loss() -> None:
    batches = tiny_batches(dtype=F64)
    for options, term in ((RENORMALISED, {"unit-norm-decoder/plain_l1"}), ({}, set())):
        with plugins("unit-norm-decoder", options=options):
            trainer = tiny_trainer(tiny_sae("standard", dtype=F64), batches)
        for losses in advance(trainer, batches):
            assert losses.keys() - {"loss", "mse_loss", "l1_loss"} == term
            assert losses.get("unit-norm-decoder/plain_l1", 0) == pytest.approx(0, abs=1e-15)
