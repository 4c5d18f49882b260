"""Accumulation, clipping, weight decay and loss forms: what the training settings do to updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expected import ARCHITECTURES as EXPECTED
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.framework.architectures import ARCHITECTURES
from sae_plugins.framework.losses import LOSS_FORMS
from sae_plugins.testing import (
    CASES,
    TOKENS,
    advance,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)

F64 = torch.float64
SHARED_K = [name for name, row in EXPECTED.items() if row.shares_k]
"""Coupled by the choice of features; the others at most by which features are dead."""


class Gradients(Plugin):
    """Keeps the gradients of every update, and the rate, the step and the update it belongs to."""

    name = "gradients"

    @hookimpl
    def attached(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.at: list[tuple[int, int]] = []
        self.rates: list[float] = []

    @hookimpl
    def before_update(self, run: Any) -> None:
        parameters = run.sae.named_parameters()
        self.seen.append({n: p.grad.clone() for n, p in parameters if p.grad is not None})
        self.at.append((run.step, run.updates))

    @hookimpl
    def step_ended(self, run: Any) -> None:
        self.rates.append(run.optimizer.param_groups[0]["lr"])


def train(batches: list[Tensor], architecture: str = "standard", config: Any = None, **training):
    """A trainer that has trained on `batches` with these training settings, and its gradients."""
    with plugins(Gradients, training=training):
        sae = tiny_sae(architecture, dtype=F64)
        trainer = tiny_trainer(sae, batches, **{"dead_feature_window": 10**6, **(config or {})})
    advance(trainer, batches)
    return trainer, trainer.host.plugins[0]


def gradient(sae: Any, batches: list[Tensor]) -> dict[str, Tensor]:
    """The mean of the batches' gradients, by autograd alone."""
    losses = []
    for batch in batches:
        step = TrainStepInput(
            sae_in=batch,
            coefficients={"l1": 0.1},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
        losses.append(sae.training_forward_pass(step).loss)
    parameters = dict(sae.named_parameters())
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    return dict(zip(parameters, grads, strict=True))


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([g.norm() for g in gradients.values()]).norm())


def clipped(gradients: dict[str, Tensor], bound: float) -> dict[str, Tensor]:
    return {n: g * min(1.0, bound / (norm(gradients) + 1e-6)) for n, g in gradients.items()}


def difference_of_micro_batches(
    architecture: str, kill: bool, **sae_config: Any
) -> dict[str, float]:
    """What differs between 5 large batches and 4 accumulated micro-batches for each of them.

    With `kill`, some features do not fire until they are dead; without it none ever is.
    """
    large = tiny_batches(steps=5, tokens=64, dtype=F64)
    small = [part for batch in large for part in batch.split(16)]
    trainers = []
    for batches, accumulate in ((large, 1), (small, 4)):
        sae = tiny_sae(architecture, dtype=F64, **sae_config)
        tied, died = ARCHITECTURES[architecture].tied, False
        if kill and not tied:
            sae.W_enc.data[:, ::3] = 0
        with plugins(Gradients, training={"accumulate": accumulate}):
            trainer = tiny_trainer(sae, batches, dead_feature_window=2 if kill else 10**6)
        for batch in batches:
            advance(trainer, [batch])
            died |= bool(trainer.dead_neurons.any())
        assert tied or died == kill
        trainers.append(trainer)
    whole, parts = trainers
    assert parts.run.updates == whole.run.updates == 5
    (gradients,) = parts.host.plugins
    assert gradients.at == [(4, 0), (8, 1), (12, 2), (16, 3), (20, 4)]
    tolerance = 1e-6 if architecture == "jumprelu" else 1e-9  # its threshold is float32 always
    return differences(
        dict(parts.sae.named_parameters()), dict(whole.sae.named_parameters()), tolerance
    )


@pytest.mark.parametrize("architecture", CASES)
def test_four_small_batches_are_one_large_batch_unless_k_is_shared(architecture: str) -> None:
    """As long as no feature is dead."""
    found = difference_of_micro_batches(architecture, kill=False)
    assert bool(found) == (architecture in SHARED_K), found


@pytest.mark.parametrize("architecture", CASES)
def test_with_dead_features_they_are_unless_the_table_gives_a_reason(architecture: str) -> None:
    """SAELens counts how long a feature has not fired in micro-batches."""
    found = difference_of_micro_batches(architecture, kill=True)
    assert bool(found) == (ARCHITECTURES[architecture].batch_coupled is not None), found


def test_the_table_gives_the_reasons() -> None:
    coupled = {name: row.batch_coupled for name, row in ARCHITECTURES.items() if row.batch_coupled}
    assert coupled.keys() == {name for name, row in EXPECTED.items() if row.counts_dead}
    for name, reason in coupled.items():
        assert ("k is shared by the whole batch" in reason) == (name in SHARED_K)
        assert "dead" in reason
    by_settings = {name: {*row.batch_coupled_by} for name, row in ARCHITECTURES.items()}
    by_settings = {name: settings for name, settings in by_settings.items() if settings}
    assert by_settings == {"jumprelu": {"pre_act_loss_coefficient"}}
    assert difference_of_micro_batches("jumprelu", kill=True, pre_act_loss_coefficient=0.1)


@pytest.mark.parametrize("clip", [0.5, 1.0, 2.0, None])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_clip_bounds_the_mean_gradient(clip: float | None, accumulate: int) -> None:
    batches = [10 * batch for batch in tiny_batches(steps=3, dtype=F64)]
    raw = gradient(tiny_sae("standard", dtype=F64), batches[:accumulate])
    assert norm(raw) > 4
    _, gradients = train(batches, accumulate=accumulate, clip=clip)
    expected = raw if clip is None else clipped(raw, clip)
    assert differences(gradients.seen[0], expected, tolerance=1e-9) == {}


def test_a_small_gradient_is_not_clipped() -> None:
    batches = [0.1 * batch for batch in tiny_batches(steps=1, dtype=F64)]
    raw = gradient(tiny_sae("standard", dtype=F64), batches)
    assert norm(raw) < 2
    _, gradients = train(batches, clip=2.0)
    assert differences(gradients.seen[0], raw, tolerance=1e-12) == {}


def test_the_last_incomplete_window_is_released() -> None:
    batches = tiny_batches(steps=10, dtype=F64)
    trainer, gradients = train(batches, accumulate=4, clip=0.5)
    assert gradients.at == [(4, 0), (8, 1), (10, 2)]
    assert trainer.run.updates == 3
    assert trainer.run.step == 11  # ten are done
    with plugins(training={"accumulate": 4, "clip": 0.5}):
        until_8 = tiny_trainer(tiny_sae("standard", dtype=F64), batches)
    advance(until_8, batches[:8])
    expected = clipped(gradient(until_8.sae, batches[8:]), 0.5)  # a mean over two, not over four
    assert differences(gradients.seen[2], expected, tolerance=1e-9) == {}


def test_nothing_moves_inside_a_window_and_the_schedule_ticks_per_batch() -> None:
    batches = tiny_batches(steps=8, dtype=F64)
    schedule = {"lr_warm_up_steps": 6}
    plain, every = train(batches, config=schedule)
    trainer, gradients = train(batches, config=schedule, accumulate=4)
    assert gradients.rates == every.rates
    assert len(set(gradients.rates)) >= 5
    assert len(gradients.seen) == 2
    assert trainer.n_training_samples == plain.n_training_samples == 8 * TOKENS

    with plugins(training={"accumulate": 4}):
        halfway = tiny_trainer(tiny_sae("standard", dtype=F64), batches)
    before = snapshot(halfway)
    advance(halfway, batches[:3])
    counters = {"act_freq_scores", "n_forward_passes_since_fired"}
    moved = differences(snapshot(halfway), before).keys()
    assert {"act_freq_scores"} <= moved <= counters


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weight_decay_is_that_of_adamw(accumulate: int) -> None:
    batches = tiny_batches(steps=8, dtype=F64)
    config = {"lr_warm_up_steps": 5}
    trainer, gradients = train(
        batches, config=config, accumulate=accumulate, clip=None, weight_decay=0.1
    )
    reference = tiny_sae("standard", dtype=F64)
    adamw = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1)
    rates = [0.01 / 5, *gradients.rates]  # the rate of step i is that left by step i - 1
    for update in range(8 // accumulate):
        window = batches[update * accumulate : (update + 1) * accumulate]
        adamw.param_groups[0]["lr"] = rates[(update + 1) * accumulate - 1]
        for name, grad in gradient(reference, window).items():
            reference.get_parameter(name).grad = grad
        adamw.step()
    found = differences(
        dict(trainer.sae.named_parameters()), dict(reference.named_parameters()), tolerance=1e-9
    )
    assert found == {}
    undecayed, _ = train(batches, config=config, accumulate=accumulate, clip=None)
    assert differences(snapshot(undecayed), snapshot(trainer), tolerance=1e-4)


def test_settings_alone_need_no_plugin() -> None:
    batches = tiny_batches(steps=8, dtype=F64)
    expected, _ = train(batches, accumulate=4, clip=0.5, weight_decay=0.1)
    with plugins(training={"accumulate": 4, "clip": 0.5, "weight_decay": 0.1}):
        sae = tiny_sae("standard", dtype=F64)
        trainer = tiny_trainer(sae, batches, dead_feature_window=10**6)
    advance(trainer, batches)
    assert differences(snapshot(trainer), snapshot(expected)) == {}


# -- loss forms --------------------------------------------------------------------------------

BY_HAND = {
    # value per token, and its derivative by the SAE's output, of the residual r [B, d]
    "sum_of_squares": lambda r: (r.square().sum(1), 2 * r),
    "l2_norm": lambda r: (r.norm(dim=1), r / r.norm(dim=1, keepdim=True)),
    "mean": lambda r: (r.square().mean(1), 2 * r / r.shape[1]),
}


@pytest.mark.parametrize("form", BY_HAND)
def test_a_loss_form_has_the_value_and_gradient_of_its_formula(form: Any) -> None:
    assert BY_HAND.keys() == LOSS_FORMS.keys()
    sae_in, sae_out = torch.randn(2, 5, 3, dtype=F64)
    sae_out.requires_grad_()
    per_token = LOSS_FORMS[form](sae_out, sae_in).sum(dim=-1)
    value, derivative = BY_HAND[form](sae_out.detach() - sae_in)
    torch.testing.assert_close(per_token.detach(), value)
    (found,) = torch.autograd.grad(per_token.sum(), sae_out)
    torch.testing.assert_close(found, derivative)


def test_the_norm_of_half_precision_residuals_is_taken_in_float32() -> None:
    sae_out = torch.full((1, 4), 300.0, dtype=torch.float16)  # the sum of squares overflows
    loss = LOSS_FORMS["l2_norm"](sae_out, torch.zeros_like(sae_out))
    assert loss.dtype == torch.float32
    assert loss.item() == 600


@pytest.mark.parametrize("architecture", CASES)
@pytest.mark.parametrize("form", BY_HAND)
def test_training_minimises_the_chosen_form(form: str, architecture: str) -> None:
    (batch,) = tiny_batches(steps=1, dtype=F64)
    outputs = []

    class Spy(Plugin):
        name = "spy"

        @hookimpl
        def after_forward(self, output):
            outputs.append(output)

    with plugins(Spy, training={"loss_form": form}):
        trainer = tiny_trainer(tiny_sae(architecture, dtype=F64), [batch])
    advance(trainer, [batch])
    value, _ = BY_HAND[form](outputs[0].sae_out.detach() - batch)
    assert outputs[0].losses["mse_loss"].item() == pytest.approx(value.mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"accumulate": 0}, "--accumulate 0: it must be at least 1"),
        ({"clip": 0.0}, "--clip 0.0: it must be greater than 0"),
        (
            {"loss_form": "l3"},
            "--loss_form 'l3': it must be 'sum_of_squares', 'l2_norm', 'mean' or none",
        ),
        ({"weight_decays": 1.0}, "no option --weight_decays: did you mean '--weight_decay'?"),
    ],
)
def test_bad_settings_are_refused(setting: Any, message: str) -> None:
    with pytest.raises(PluginError) as caught, plugins(training=setting):
        pass
    assert message in str(caught.value)
