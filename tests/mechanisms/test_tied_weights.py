"""Tied weights, against a naive loop that has one matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.mechanisms.tied_weights import TiedWeights
from sae_plugins.testing import (
    STEPS,
    PluginContract,
    advance,
    differences,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)


class TestContract(PluginContract):
    """One matrix at first, and then two."""

    plugin = TiedWeights
    options = {"until": 0.5}


def naive(batches: list[Tensor], clip: float, accumulate: int, decay: float) -> dict[str, Tensor]:
    """SAELens' standard SAE with one matrix W [d_sae, d_in], and torch's own Adam and clip."""
    sae = tiny_sae("standard", dtype=torch.float64)
    W, b_enc, b_dec = (
        p.detach().clone().requires_grad_() for p in (sae.W_dec, sae.b_enc, sae.b_dec)
    )
    adam = torch.optim.Adam([W, b_enc, b_dec], lr=0.01)
    for start in range(0, len(batches), accumulate):
        for x in batches[start : start + accumulate]:
            z = ((x - b_dec) @ W.T + b_enc).relu()
            error = (z @ W + b_dec - x).square().sum(dim=1).mean()
            (error + 0.1 * (z * W.norm(dim=1)).sum(dim=1).mean()).div(accumulate).backward()
        torch.nn.utils.clip_grad_norm_([W, b_enc, b_dec], clip)
        with torch.no_grad():
            for parameter in (W, b_enc, b_dec):
                parameter.mul_(1 - 0.01 * decay)
        adam.step()
        adam.zero_grad()
    return {"W_enc": W.T, "W_dec": W, "b_enc": b_enc, "b_dec": b_dec}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("clip", "accumulate", "decay"), [(1.0, 1, 0.0), (0.3, 3, 0.1)])
def test_it_trains_one_matrix(clip: float, accumulate: int, decay: float, fast: bool) -> None:
    batches = tiny_batches(steps=STEPS, dtype=torch.float64)
    training = {
        **{"clip": clip, "accumulate": accumulate, "weight_decay": decay, "fast_step": fast},
    }
    with plugins(TiedWeights, training=training):
        sae = tiny_sae("standard", dtype=torch.float64)
        trainer = tiny_trainer(sae, batches, lr_scheduler_name="constant", lr_decay_steps=0)
    advance(trainer, batches)
    expected = naive(batches, clip, accumulate, decay)
    assert differences(trainer.sae.state_dict(), expected, tolerance=1e-12) == {}
    assert torch.equal(trainer.sae.W_enc, trainer.sae.W_dec.T)


class Watch(Plugin):
    """Whether the matrices are one, at the end of each step and after each change of features."""

    name = "watch"
    after = ("tied-weights", "resample", "merge")

    @hookimpl
    def attached(self) -> None:
        self.one: list[bool] = []
        self.changes = 0

    @hookimpl
    def step_ended(self, run: Any) -> None:
        self.one.append(torch.equal(run.sae.W_enc, run.sae.W_dec.T))

    @hookimpl
    def features_changed(self, run: Any) -> None:
        self.changes += 1
        assert torch.equal(run.sae.W_enc, run.sae.W_dec.T)


def test_the_matrices_are_one_whoever_changes_the_decoder() -> None:
    options = {
        "resample": {"per": "token", "threshold": 0.5, "stop": None},
        "merge": {"every": 3, "threshold": 0.5, "stop": None},
        "firing-window": {"window": 3},
        "reorder": {"start": 2, "interval": 3},
    }
    names = ("unit-norm-decoder", "importance-lr", "resample", "merge", "reorder", TiedWeights)
    trainer = train(*names, Watch, options=options)
    watch = trainer.run.plugin("watch")
    assert all(watch.one)
    assert watch.changes > 4
    assert trainer.sae.W_enc.norm(dim=0).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize(("until", "tied"), [(1, 12), (0.5, 6), (0.75, 9), (0.01, 1)])
def test_the_matrices_part_after_a_share_of_the_run(until: float, tied: int) -> None:
    trainer = train(TiedWeights, Watch, options={"tied-weights": {"until": until}})
    assert trainer.run.plugin("watch").one == [True] * tied + [False] * (STEPS - tied)
    moments = [trainer.optimizer.state[p]["step"] for p in trainer.sae.parameters()]
    assert {float(step) for step in moments} == {STEPS}


@pytest.mark.parametrize(
    ("names", "training"),
    [
        ((), {"clip": None}),
        ((), {}),
        ((), {"clip": 0.02, "accumulate": 3}),
        (("unit-norm-decoder",), {"clip": 0.02}),
        (("unit-norm-decoder",), {"weight_decay": 0.1, "weight_decay_form": "coupled"}),
    ],
)
def test_a_loss_of_the_encoder_itself_is_in_the_sum_that_is_projected_and_clipped(
    names: tuple[str, ...], training: dict[str, Any]
) -> None:
    pull = torch.randn(24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Encoder(Plugin):
        name = "encoder"

        @hookimpl
        def extra_losses(self, run: Any) -> Any:
            return {"term": (run.sae.W_enc * pull.T).sum()}

    class Decoder(Plugin):
        name = "decoder"

        @hookimpl
        def extra_losses(self, run: Any) -> Any:
            return {"term": (run.sae.W_dec * pull).sum()}

    common: Any = {"dtype": torch.float64, "training": training}
    one, other = (train(TiedWeights, *names, other, **common) for other in (Encoder, Decoder))
    # with decoder_init_norm 0.1 the matrices are one from the first step on
    assert differences(one.sae.state_dict(), other.sae.state_dict(), tolerance=1e-12) == {}


def test_an_encoder_of_its_own_is_not_dropped() -> None:
    sae = tiny_sae("standard")
    with torch.no_grad():
        sae.W_enc += 0.01
    with plugins(TiedWeights), pytest.raises(PluginError, match="leave the plugin out, or begin"):
        tiny_trainer(sae, tiny_batches())


def test_an_encoder_that_is_the_decoder_cannot_be_tied() -> None:
    with pytest.raises(PluginError, match="encoder is the decoder's transpose already"):
        train(TiedWeights, architecture="matching_pursuit")


@pytest.mark.parametrize("until", [0, 1.5])
def test_no_share_is_refused(until: float) -> None:
    with pytest.raises(PluginError, match=r"--tied-weights\.until"):
        train(TiedWeights, options={"tied-weights": {"until": until}})
