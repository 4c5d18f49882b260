"""A decoder that is trained more slowly from some step on."""

from __future__ import annotations

import pytest
import torch

from sae_plugins import plugins
from sae_plugins.mechanisms.slow_decoder import SlowDecoder
from sae_plugins.testing import PluginContract, advance, tiny_batches, tiny_sae, tiny_trainer

BATCHES = tiny_batches(steps=6, dtype=torch.float64)


class TestContract(PluginContract):
    """From the middle on."""

    plugin = SlowDecoder
    options = {"after": 0.5}


def trained(rate: float, after: int, architecture: str = "standard") -> list[torch.Tensor]:
    """The decoder after each step."""
    options = {"slow-decoder": {"rate": rate, "after": after}}
    with plugins(SlowDecoder, options=options):
        trainer = tiny_trainer(tiny_sae(architecture, dtype=torch.float64), BATCHES)
    found = [trainer.sae.W_dec.detach().clone()]
    for batch in BATCHES:
        advance(trainer, [batch])
        found.append(trainer.sae.W_dec.detach().clone())
    return found


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_its_first_slow_update_is_that_share_of_the_whole_one(rate: float) -> None:
    slow, plain = trained(rate, 3), trained(1.0, 3)
    for step in range(4):
        assert torch.equal(slow[step], plain[step])
    moved = rate * (plain[4] - plain[3])
    assert torch.allclose(slow[4] - slow[3], moved, rtol=0, atol=1e-15)
    if rate == 0:
        assert torch.equal(slow[6], slow[3])


def test_a_run_in_which_it_does_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    trained(0.1, 6)
    assert "slow-decoder does nothing in this run, which has 6 steps" in caplog.text
