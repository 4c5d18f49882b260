"""The sparsity coefficient that follows the reconstruction error, against numbers made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.mechanisms.reconstruction_l1 import (
    ReconstructionL1,
    reconstruction_error,
    reconstruction_multiplier,
)
from sae_plugins.testing import (
    PluginContract,
    advance,
    differences,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)


class TestContract(PluginContract):
    plugin = ReconstructionL1


class TestOnSums(PluginContract):
    plugin = ReconstructionL1
    options = {"unit": "sum", "target": 1.0, "least": 0.5}


def test_the_units_of_the_error() -> None:
    x = torch.tensor([[0.0, 2.0], [2.0, 4.0]])  # each column's variance about its mean: 1
    out = x + torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert reconstruction_error(x, out, "mse") == 0.5
    assert reconstruction_error(x, out, "sum") == 1
    assert reconstruction_error(x, out, "fvu") == 2 / 4
    mean = x.mean(dim=0).expand_as(x)
    assert reconstruction_error(x, mean, "fvu") == 1
    assert reconstruction_error(x.bfloat16(), out.bfloat16(), "fvu").dtype == torch.float32
    assert reconstruction_error(torch.ones(3, 2), torch.ones(3, 2), "fvu") == 0  # not NaN


def test_the_papers_target_in_its_two_units() -> None:
    """2.5 of a variance of 27.1 per element is an FVU of 0.092."""
    x = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0)) * 27.1**0.5
    out = x + torch.randn(4000, 50, generator=torch.Generator().manual_seed(1)) * 2.66**0.5
    by_mse = reconstruction_multiplier(reconstruction_error(x, out, "mse"), 2.5, 0.1, 2)
    by_fvu = reconstruction_multiplier(reconstruction_error(x, out, "fvu"), 0.092, 0.1, 2)
    assert by_mse == pytest.approx(2.5 / 2.66, rel=0.01)
    assert by_fvu == pytest.approx(float(by_mse), rel=0.01)


@given(
    error=st.floats(0, 1e30, allow_nan=False),
    target=st.floats(1e-6, 1e6),
    least=st.floats(0, 1),
    more=st.floats(0, 1),
)
def test_the_multiplier_is_inside_its_bounds(
    error: float, target: float, least: float, more: float
) -> None:
    least, greatest = torch.tensor([least, least + more]).tolist()
    alpha = reconstruction_multiplier(torch.tensor(error), target, least, greatest)
    assert least <= alpha <= greatest
    if error > 0 and least < target / error < greatest:
        assert alpha == pytest.approx(target / error, rel=1e-5)


def coefficients(**options: Any) -> tuple[list[float], list[float], Any]:
    """The coefficient of each step, its error, and the trainer."""
    seen, errors = [], []

    class Spy(Plugin):
        name = "spy"
        after = ("reconstruction-l1",)

        @hookimpl
        def extra_losses(self, run, step_input, output):
            seen.append(float(step_input.coefficients["l1"]))
            residual = (output.sae_out - output.sae_in).square()
            spread = output.sae_in - output.sae_in.mean(dim=0)
            errors.append((residual.sum() / spread.square().sum()).item())

    trainer = train(
        ReconstructionL1, Spy, options={"reconstruction-l1": options}, steps=5, dtype=torch.float64
    )
    return seen, errors, trainer


def test_a_step_has_the_multiplier_of_its_own_error() -> None:
    seen, errors, trainer = coefficients(target=0.5, least=0.0, greatest=100.0)
    assert seen == pytest.approx([0.1 * 0.5 / error for error in errors], rel=1e-12)
    assert trainer.run.summary["reconstruction-l1/share_of_steps_at_least"] == 0
    assert trainer.run.summary["reconstruction-l1/share_of_steps_at_greatest"] == 0


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_eqs_5_and_6_as_printed(accumulate: int, fast: bool) -> None:
    """The loss and its gradient, of weights that the plugin has trained (float64)."""
    batches = tiny_batches(steps=9, dtype=torch.float64)
    training = {"accumulate": accumulate, "fast_step": fast, "clip": None}
    options = {"reconstruction-l1": {"target": 0.3}}
    with plugins("linear-l1", ReconstructionL1, options=options, training=training):
        trainer = tiny_trainer(tiny_sae("standard", dtype=torch.float64), batches)
    alphas = []
    for start in range(0, 9, accumulate):
        parameters = {n: p.detach().clone() for n, p in trainer.sae.named_parameters()}
        held = {name: torch.zeros_like(value) for name, value in parameters.items()}
        seen: dict[str, Tensor] = {}
        handle = trainer.optimizer.register_step_pre_hook(
            lambda *_, seen=seen: seen.update(
                {n: p.grad.clone() for n, p in trainer.sae.named_parameters() if p.grad is not None}
            )
        )
        for step, x in enumerate(batches[start : start + accumulate], start + 1):
            (found,) = advance(trainer, [x])
            W = {name: value.clone().requires_grad_() for name, value in parameters.items()}
            z = ((x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
            error = z @ W["W_dec"] + W["b_dec"] - x
            L_recon = error.square().sum() / (x - x.mean(0)).square().sum()
            alphas.append((0.3 / L_recon.detach()).clamp(0.1, 2.0))  # Eq. 5
            L1 = (z * W["W_dec"].norm(dim=1)).sum(dim=1).mean()
            lam = 0.1 * (1 - step / 9)  # Eq. 3
            L = error.square().sum(dim=1).mean() + lam * alphas[-1] * L1  # Eq. 6
            assert found["loss"] == pytest.approx(L.item(), rel=1e-12)
            for name, gradient in zip(W, torch.autograd.grad(L, [*W.values()]), strict=True):
                held[name] += gradient / accumulate
        handle.remove()
        assert differences(seen, held, tolerance=1e-12) == {}
    assert 0.1 < min(alphas) < max(alphas) < 2.0


def test_the_share_of_steps_at_a_bound_is_summarised() -> None:
    seen, _, trainer = coefficients(target=1e-9, least=0.25)
    assert seen == pytest.approx([0.025] * 5)
    summary = trainer.run.summary
    assert summary["reconstruction-l1/share_of_steps_at_least"] == 1
    _, _, trainer = coefficients(target=1e9)
    summary = trainer.run.summary
    assert summary["reconstruction-l1/share_of_steps_at_greatest"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"greatest": 0.05}, r"--reconstruction-l1\.greatest 0\.05: .*below .*l1\.least = 0\.1"),
        ({"least": 99}, r"--reconstruction-l1\.greatest 2\.0: .*below .*l1\.least = 99"),
    ],
)
def test_bounds_in_the_wrong_order_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        train(ReconstructionL1, options={"reconstruction-l1": options}, steps=1)
