"""Reconstruction alone for the first steps."""

from __future__ import annotations

import logging

import pytest

from sae_plugins import Plugin, hookimpl
from sae_plugins.mechanisms.reconstruction_warm_up import ReconstructionWarmUp
from sae_plugins.testing import PluginContract, train


class TestContract(PluginContract):
    plugin = ReconstructionWarmUp
    options = {"steps": 5}


def losses(steps: int, warm_up: int) -> list[float]:
    seen = []

    class Spy(Plugin):
        name = "spy"

        @hookimpl
        def step_ended(self, output):
            seen.append(output.losses["l1_loss"].item())

    options = {ReconstructionWarmUp.name: {"steps": warm_up}}
    train(ReconstructionWarmUp, Spy, steps=steps, options=options)
    return seen


def test_there_is_no_sparsity_loss_in_the_phase_and_all_of_it_after() -> None:
    assert [loss > 0 for loss in losses(5, 2)] == [False, False, True, True, True]
    plain, without = losses(1, 0), losses(1, 1)
    assert plain[0] > 0
    assert without == [0]


def test_a_phase_that_never_ends_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        losses(3, 3)
    assert "reconstruction-warm-up.steps = 3" in caplog.text
    caplog.clear()
    losses(3, 2)
    assert not caplog.text
