"""Multipliers of coefficients, before the forward pass and after it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import expected
import pytest
import torch

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.framework.fast.choice import forced
from sae_plugins.testing import advance, differences, tiny_batches, tiny_sae, tiny_trainer, train

STEPS = 6


class _Multiplies(Plugin):
    """Returns `early` and `late`, by coefficient, in these two events; None for nothing."""

    early: Any = None
    late: Any = None

    @hookimpl
    def before_forward(self, run: Any) -> Any:
        return self.early

    @hookimpl
    def after_forward(self, run: Any, output: Any) -> Any:
        return self.late(output) if callable(self.late) else self.late


def multiplies(name: str, **returned: Any) -> Any:
    own = {n: staticmethod(v) if callable(v) else v for n, v in returned.items()}
    return type("Multiplies", (_Multiplies,), {"name": name, **own})


def trained(architecture: str, *names: Any, sparse: bool | None = None) -> tuple[Any, Any]:
    """A trainer in float64 that accumulates, and its losses; with the fast step, or SAELens'."""
    batches = tiny_batches(steps=STEPS, dtype=torch.float64)
    training = {"accumulate": 2, "fast_step": sparse is not None}
    with plugins(*names, training=training):
        trainer = tiny_trainer(tiny_sae(architecture, dtype=torch.float64), batches)
    with nullcontext() if sparse is None else forced(sparse):
        return trainer, advance(trainer, batches)


@pytest.mark.parametrize("sparse", [None, False, True])
@pytest.mark.parametrize("architecture", expected.WITH_COEFFICIENT)
def test_a_multiplier_is_the_same_before_and_after_the_forward_pass(
    architecture: str, sparse: bool | None
) -> None:
    coefficient, _ = expected.WITH_COEFFICIENT[architecture]
    two = ("p", 0.7), ("q", torch.tensor(3.0, dtype=torch.float64))
    (one, one_losses), (other, other_losses) = (
        trained(
            architecture,
            *(multiplies(name, **{event: {coefficient: value}}) for name, value in two),
            sparse=sparse,
        )
        for event in ("early", "late")
    )
    for before, after in zip(one_losses, other_losses, strict=True):
        assert after == pytest.approx(before, rel=1e-13, abs=1e-15)
        assert list(after) == list(before)
    # Adam divides by the gradient's size, which makes more of rounding
    assert not differences(other.sae.state_dict(), one.sae.state_dict(), tolerance=1e-11)


def test_all_multipliers_of_a_coefficient_act_and_are_logged() -> None:
    seen = []

    class Sees(Plugin):
        name = "sees"

        @hookimpl
        def extra_losses(self, step_input: Any, output: Any) -> None:
            seen.append((step_input.coefficients["l1"], output.losses["l1_loss"].item()))

    both = multiplies("both", early={"l1": 2.0}, late={"l1": 5.0})
    late = multiplies("late", late=lambda output: {"l1": output.sae_out.square().mean()})
    with plugins(both, late, Sees):
        trainer = tiny_trainer(tiny_sae("standard"))
    (batch,) = tiny_batches(steps=1)
    output = trainer.step(batch)
    sae = tiny_sae("standard")
    acts = sae.encode(batch)
    alpha = sae.decode(acts).square().mean().item()
    expected = 0.1 * 10 * alpha * (acts * sae.W_dec.norm(dim=1)).sum(dim=1).mean().item()
    assert output.losses["l1_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx(sum(v.item() for v in output.losses.values()))
    logged = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
    assert logged["metrics/coefficients/l1/both"] == 10
    assert logged["metrics/coefficients/l1/late"] == pytest.approx(alpha)
    assert logged["metrics/coefficients/l1"] == pytest.approx(alpha)
    assert seen == [(pytest.approx(alpha), pytest.approx(expected, rel=1e-5))]


def test_no_gradient_flows_through_a_multiplier() -> None:
    def alpha(output: Any) -> Any:
        with torch.enable_grad():
            return {"l1": output.sae_out.square().sum()}

    def constant(output: Any) -> Any:
        return {"l1": output.sae_out.detach().square().sum()}

    one, _ = trained("standard", multiplies("p", late=alpha))
    other, _ = trained("standard", multiplies("p", late=constant))
    assert differences(one.sae.state_dict(), other.sae.state_dict()) == {}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"l0": 2.0}, r"'p' multiplies the coefficient 'l0', but standard SAEs have \['l1'\]"),
        ({"l1": torch.ones(32)}, "'l1' per token after the forward pass, .* multiply in before_f"),
        ({"l1": "x"}, "'l1' by 'x': return a number or a tensor"),
        (0.5, "'p': after_forward must return values by name"),
    ],
)
def test_what_cannot_be_multiplied_after_the_forward_pass_is_refused(
    returned: Any, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        train(multiplies("p", late=returned), steps=1)


def test_a_coefficient_without_a_loss_of_its_name_is_refused() -> None:
    with plugins(multiplies("p", late={"l1": 2.0})):
        trainer = tiny_trainer(tiny_sae("standard"))
    own = trainer.sae.training_forward_pass

    def renamed(step_input: Any) -> Any:
        output = own(step_input=step_input)
        output.losses["sparsity"] = output.losses.pop("l1_loss")
        return output

    trainer.sae.training_forward_pass = renamed
    with pytest.raises(PluginError, match=r"'l1_loss' is not among \['mse_loss', 'sparsity'\]"):
        trainer.step(tiny_batches(steps=1)[0])
