"""Multipliers of coefficients, before the forward pass and after it, and of k."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from sae_lens import SAE

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.framework.architectures import ARCHITECTURES
from sae_plugins.framework.fast.choice import forced
from sae_plugins.resume.state import read_state, write_state
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


@pytest.mark.parametrize("sparse", [None, True])
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
        ({"l0": 2.0}, r"'p' multiplies the coefficient 'l0', but standard SAEs have l1: "),
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


# -- k ---------------------------------------------------------------------------------------------

HAVING_K = {name: row.k_per for name, row in ARCHITECTURES.items() if row.k_per}


class _Schedule(Plugin):
    """Lets k fall from twice as many to what is given in the first half of a run."""

    name = "schedule"

    @hookimpl
    def before_forward(self, run: Any) -> Any:
        done = 2 * run.step / run.total_steps
        return {"k": 2 - done} if done < 1 else None


@pytest.mark.parametrize("sparse", [None, True])
@pytest.mark.parametrize("architecture", HAVING_K)
def test_k_times_multipliers_is_another_k(architecture: str, sparse: bool | None) -> None:
    two = multiplies("p", early={"k": 3}), multiplies("q", early={"k": torch.tensor(0.5)})
    trainer, losses = trained(architecture, *two, sparse=sparse)
    batches = tiny_batches(steps=STEPS, dtype=torch.float64)
    training = {"accumulate": 2, "fast_step": sparse is not None}
    with plugins("firing-frequency", training=training):
        other = tiny_trainer(tiny_sae(architecture, dtype=torch.float64, k=6), batches)
    with nullcontext() if sparse is None else forced(sparse):
        assert advance(other, batches) == losses
    assert differences(trainer.sae.state_dict(), other.sae.state_dict()) == {}
    assert trainer.run.metrics["coefficients/k"] == trainer.sae.cfg.k == 6
    assert trainer.run.metrics["coefficients/k/p"] == 3


@pytest.mark.parametrize(
    ("factors", "per_token", "per_batch"),
    [
        ((0.6, 0.5), 1, 1.2),  # of 4
        ((0.4,), 2, 1.6),
        ((0.625,), 3, 2.5),
        ((1 / 3, 3), 4, 4),
        ((0.1,), 1, 1),
        ((-2,), 1, 1),
        ((100,), 24, 24),
    ],
)
def test_k_is_rounded_and_stays_within_the_features(
    factors: Any, per_token: int, per_batch: float
) -> None:
    names = [multiplies(f"p{place}", early={"k": each}) for place, each in enumerate(factors)]
    for architecture, k_per in HAVING_K.items():
        with plugins(*names):
            trainer = tiny_trainer(tiny_sae(architecture))
        output = trainer.step(tiny_batches(steps=1)[0])
        k = per_token if k_per == "token" else per_batch
        assert trainer.sae.cfg.k == k
        assert type(trainer.sae.cfg.k) is int or k_per == "batch"
        most = int(k * 32)  # those that are not positive are not active
        assert 0 < (output.feature_acts != 0).sum() <= most


@pytest.mark.parametrize("architecture", HAVING_K)
def test_a_schedule_of_k_ends_and_goes_on_from_a_checkpoint(
    architecture: str, tmp_path: Path
) -> None:
    batches = tiny_batches(steps=STEPS)

    def built() -> Any:
        with plugins(_Schedule, training={"fast_step": True}):
            return tiny_trainer(tiny_sae(architecture), batches)

    whole, seen = built(), []
    for step, batch in enumerate(batches):
        write_state(tmp_path / f"{step}.safetensors", whole.state_dict())
        advance(whole, [batch])
        seen.append(whole.sae.activation_fn.k)
    expected = [4 * 5 / 3, 4 * 4 / 3, 4, 4, 4, 4]
    rounded = [7, 5, 4, 4, 4, 4]
    assert seen == (rounded if HAVING_K[architecture] == "token" else pytest.approx(expected))
    for stop in (1, 2, 5):
        resumed = built()
        resumed.load_state_dict(read_state(tmp_path / f"{stop}.safetensors"))
        assert resumed.sae.cfg.k == resumed.sae.activation_fn.k == seen[stop - 1]
        advance(resumed, batches[stop:])
        assert differences(resumed.sae.state_dict(), whole.sae.state_dict()) == {}


def test_an_sae_is_saved_with_the_k_of_its_last_step(tmp_path: Path) -> None:
    double = multiplies("p", early={"k": 2})
    sae = train(double, architecture="topk").sae
    sae.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(str(tmp_path))
    assert saved.cfg.k == 8
    assert (saved.encode(tiny_batches(1, steps=1)[0]) != 0).sum(dim=1).max() > 4
    with plugins(double, training={"calibrate_threshold": True}):
        trainer = tiny_trainer(tiny_sae("batchtopk"), tiny_batches())
    trained = trainer.fit()
    trained.save_inference_model(tmp_path)
    acts = SAE.load_from_disk(str(tmp_path)).encode(tiny_batches()[-1])
    assert (acts != 0).sum(dim=1).float().mean() == pytest.approx(8, rel=0.1)


def test_where_nobody_multiplies_k_it_is_left_alone() -> None:
    trainer = train("firing-frequency", architecture="batchtopk", steps=2)
    assert "k" not in trainer.state_dict()
    assert type(trainer.sae.activation_fn.k) is int


@pytest.mark.parametrize(
    ("architecture", "returned", "message"),
    [
        ("standard", {"early": {"k": 2}}, r"'p' multiplies k, but standard SAEs have l1: "),
        ("topk", {"late": {"k": 2}}, "k after the forward pass, which has chosen k features by"),
        ("topk", {"early": {"k": torch.ones(32)}}, "k per token, and there is one for all"),
        ("topk", {"early": {"k": float("nan")}}, "'p' multiplies k by nan"),
        ("batchtopk", {"early": {"k": torch.tensor(float("inf"))}}, "'p' multiplies k by inf"),
    ],
)
def test_what_is_no_multiplier_of_k_is_refused(
    architecture: str, returned: Any, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        train(multiplies("p", **returned), architecture=architecture, steps=1)
