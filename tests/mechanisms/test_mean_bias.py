"""b_dec that starts at the mean of the data."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.framework.mean import distance, share_of_energy, usual_tokens
from sae_plugins.mechanisms.mean_bias import MeanBias
from sae_plugins.runs.recorder import Recorder, _warn_of_mean
from sae_plugins.testing import (
    CASES,
    STEPS,
    PluginContract,
    advance,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)

BATCHES = [batch + torch.linspace(1, 3, batch.shape[-1]) for batch in tiny_batches(steps=STEPS)]
"""With a mean that has most of their energy."""


class TestContract(PluginContract):
    """It is the only thing that the first step does."""

    plugin = MeanBias


class First(Plugin):
    """What b_dec is in the first forward pass."""

    name = "first"
    after = ("mean-bias",)
    observes_only = True

    @hookimpl
    def after_forward(self, run, step_input: TrainStepInput) -> None:
        if run.step == 1:
            self.b_dec = run.sae.b_dec.detach().clone()


@pytest.mark.parametrize("architecture", CASES)
def test_it_starts_at_the_mean_of_the_first_batch_and_is_trained_from_there(
    architecture: str,
) -> None:
    with plugins(MeanBias, First):
        trainer = tiny_trainer(tiny_sae(architecture), BATCHES)
    advance(trainer, BATCHES)
    found = trainer.host.plugins[1].b_dec
    assert torch.allclose(found, BATCHES[0].mean(dim=0), atol=1e-6)
    assert not torch.equal(trainer.sae.b_dec, found)


@pytest.mark.parametrize("applied", [True, False])
def test_the_mean_is_that_of_what_b_dec_is_added_to(applied: bool) -> None:
    sae = tiny_sae("standard", normalize_activations="layer_norm", apply_b_dec_to_input=applied)
    sae.b_dec.data += 0.3
    rows = usual_tokens(sae, BATCHES[0])
    centred = BATCHES[0] - BATCHES[0].mean(dim=1, keepdim=True)
    assert torch.allclose(rows, centred / centred.std(dim=1, keepdim=True), atol=1e-3)


def test_outliers_are_left_out() -> None:
    sae = tiny_sae("standard")
    batch = torch.cat([BATCHES[0], 100 * BATCHES[0][:2]])
    assert torch.allclose(usual_tokens(sae, batch), BATCHES[0], atol=1e-5)


def test_energy_and_distance() -> None:
    rows = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
    assert share_of_energy(rows) == pytest.approx(0.9)
    assert share_of_energy(torch.zeros(4, 2)) == 0
    assert distance(torch.tensor([0.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(5 / 3)
    assert distance(torch.ones(2), torch.zeros(2)) is None


def test_a_b_dec_that_was_trained_is_not_lost() -> None:
    sae = tiny_sae("standard")
    sae.b_dec.data[1] = 0.1
    said = r"mean-bias.*b_dec that was trained, and that would be"
    with plugins(MeanBias), pytest.raises(PluginError, match=said):
        tiny_trainer(sae, BATCHES)


def test_a_b_dec_that_is_never_added_to_anything_is_refused() -> None:
    sae = tiny_sae("matching_pursuit", apply_b_dec_to_input=False)
    said = "matching_pursuit SAEs have no b_dec where it is not subtracted"
    with plugins(MeanBias), pytest.raises(PluginError, match=said):
        tiny_trainer(sae, BATCHES)


def test_nothing_is_said_of_a_mean_that_is_there_by_chance(tmp_path: Path) -> None:
    batches = tiny_batches(steps=STEPS)
    batches[0] = batches[0] - 0.99 * batches[0].mean(dim=0)
    options = {"recorder": {"output_path": str(tmp_path), "figures": False}}
    with plugins(Recorder, options=options):
        trainer = tiny_trainer(tiny_sae("standard"), batches)
    advance(trainer, batches)
    assert not trainer.run.plugin("recorder").off_mean


@pytest.mark.parametrize("by", [(), (MeanBias,)])
def test_a_run_says_where_b_dec_was_and_warns_where_it_is_far_from_much(
    by: tuple[type[Plugin], ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_mean.cache_clear()
    options = {"recorder": {"output_path": str(tmp_path), "figures": False}}
    with caplog.at_level(logging.WARNING), plugins(*by, Recorder, options=options):
        for _ in range(2):  # SAEs on the same batches
            trainer = tiny_trainer(tiny_sae("standard"), BATCHES)
            advance(trainer, BATCHES)
    said = [r.getMessage() for r in caplog.records if "--plugin mean-bias" in r.getMessage()]
    assert len(said) == (not by)
    assert all(text.startswith("the mean of the activations has 8") for text in said)
    recorder = trainer.run.plugin("recorder")
    at_start, at_end = recorder.off_mean.values()
    assert at_start == pytest.approx(0 if by else 1, abs=1e-6)
    assert at_end == distance(trainer.sae.b_dec, BATCHES[0].mean(dim=0))
