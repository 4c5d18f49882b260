"""The moving average of the weights that a run ends with."""

from __future__ import annotations

import pytest
import torch

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.mechanisms.averaged_weights import AveragedWeights
from sae_plugins.testing import CASES, PluginContract, advance, tiny_batches, tiny_sae, tiny_trainer

STEPS = 6
BATCHES = tiny_batches(steps=STEPS, dtype=torch.float64)


class TestContract(PluginContract):
    """A short average."""

    plugin = AveragedWeights
    options = {"decay": 0.8}


class Resets(Plugin):
    """A feature that starts again after the fourth step."""

    name = "resets"

    @hookimpl
    def step_ended(self, run):
        if run.step == 4:
            run.features.reset(torch.tensor([3]), torch.ones(1, run.sae.cfg.d_in))


def weights(
    architecture: str, *chosen: type[Plugin], decay: float
) -> list[dict[str, torch.Tensor]]:
    """After each step."""
    options = {"averaged-weights": {"decay": decay}} if AveragedWeights in chosen else {}
    with plugins(*chosen, options=options):
        trainer = tiny_trainer(tiny_sae(architecture, dtype=torch.float64), BATCHES)
    found = []
    for batch in BATCHES:
        advance(trainer, [batch])
        found.append({n: p.detach().clone() for n, p in trainer.sae.named_parameters()})
    return found


@pytest.mark.parametrize("architecture", CASES)
@pytest.mark.parametrize("decay", [0.0, 0.7, 0.999])
def test_the_last_step_ends_with_the_average(architecture: str, decay: float) -> None:
    own = weights(architecture, AveragedWeights, decay=decay)
    last = weights(architecture, decay=decay)
    for before, plain in zip(own[:-1], last, strict=False):
        assert all(torch.equal(before[name], plain[name]) for name in plain)
    for name, plain in last[-1].items():
        average = last[0][name].clone()
        for step, after in enumerate(last, 1):
            average.lerp_(after[name], max(1 - decay, 1 / step))
        if name == "W_dec":
            average *= (plain.norm(dim=1) / average.norm(dim=1))[:, None]
        assert torch.allclose(own[-1][name], average, atol=1e-12)
        if decay == 0:
            assert torch.allclose(average, plain, atol=1e-12)


def test_what_a_feature_was_before_it_starts_again_does_not_count() -> None:
    own = weights("standard", Resets, AveragedWeights, decay=0.999)
    last = weights("standard", Resets, decay=0.999)
    again = last[3]["W_enc"][:, 3]  # after the reset, which the fourth step ends with
    expected = again.lerp(last[4]["W_enc"][:, 3], 1 / 5).lerp(last[5]["W_enc"][:, 3], 1 / 6)
    assert torch.allclose(own[-1]["W_enc"][:, 3], expected, atol=1e-12)
