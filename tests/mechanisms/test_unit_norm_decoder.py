"""Unit-norm decoder rows: the projection, the renormalisation, and the two together in training."""

from __future__ import annotations

import pytest
import torch

from sae_plugins import hookimpl, plugins
from sae_plugins.base.errors import PluginError
from sae_plugins.framework.plugin import Plugin
from sae_plugins.mechanisms.unit_norm_decoder import UnitNormDecoder, normalise_, remove_parallel_
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


def test_the_gradient_that_adam_sees_is_orthogonal_to_the_rows() -> None:
    cosines = []

    class Observer(Plugin):
        name = "observer"
        after = ("unit-norm-decoder",)

        @hookimpl
        def before_update(self, run):
            decoder = run.sae.W_dec
            cosines.append(torch.cosine_similarity(decoder.grad, decoder, dim=1))

    train(UnitNormDecoder, Observer, dtype=torch.float64)
    assert torch.stack(cosines).abs().max() < 1e-12


def test_equals_a_constrained_adam_written_by_hand() -> None:
    """Clip, project, Adam, renormalise: the order of HybridOrder's ConstrainedAdam."""
    batches = tiny_batches(dtype=torch.float64)
    with plugins("unit-norm-decoder"):
        trainer = tiny_trainer(tiny_sae("standard", dtype=torch.float64), batches)
    advance(trainer, batches)

    reference = tiny_sae("standard", dtype=torch.float64)
    parameters = dict(reference.named_parameters())
    w_enc, w_dec, b_enc, b_dec = (parameters[n] for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
    adam = torch.optim.Adam(reference.parameters(), lr=0.01)
    w_dec.data /= w_dec.data.norm(dim=1, keepdim=True)
    for batch in batches:
        acts = torch.relu((batch - b_dec) @ w_enc + b_enc)
        error = (acts @ w_dec + b_dec - batch).pow(2).sum(dim=1)
        sparsity = (acts * w_dec.norm(dim=1)).sum(dim=1)
        adam.zero_grad()
        (error + 0.1 * sparsity).mean().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        along = (w_dec.grad * w_dec.data).sum(dim=1, keepdim=True)
        w_dec.grad -= along * w_dec.data
        adam.step()
        w_dec.data /= w_dec.data.norm(dim=1, keepdim=True)
    for name, value in trainer.sae.named_parameters():
        torch.testing.assert_close(value, parameters[name], atol=1e-12, rtol=1e-9)


def test_claims_the_decoders_norm() -> None:
    class Rival(Plugin):
        name = "rival"
        claims = ("decoder_norm",)

    with pytest.raises(PluginError, match="'unit-norm-decoder' and 'rival' both claim"):
        train(UnitNormDecoder, Rival)
