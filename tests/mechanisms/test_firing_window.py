"""The sliding window of firings, against one that is recounted from all steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_plugins import Plugin, hookimpl
from sae_plugins.mechanisms.firing_window import FiringWindow
from sae_plugins.testing import CASES, D_SAE, TOKENS, PluginContract, train


class TestContract(PluginContract):
    plugin = FiringWindow
    options = {"window": 4}


@pytest.mark.parametrize("architecture", CASES)
def test_equals_a_recount_of_every_window(architecture: str) -> None:
    """While features are permuted and reset, followed here by their identity."""
    fired: list[torch.Tensor] = []
    born = torch.zeros(D_SAE, dtype=torch.int64)

    class Spy(Plugin):
        name = "spy"
        requires = ("firing-window",)

        @hookimpl
        def step_ended(self, run, output):
            window = run.plugin("firing-window")
            by_identity = torch.zeros(D_SAE, dtype=torch.int64)
            by_identity[window.identity] = (output.feature_acts.to_dense() != 0).sum(dim=0)
            fired.append(by_identity)
            self.check(window, run.step)
            if run.step == 4:
                run.features.reset(torch.tensor([1, 7]), torch.ones(2, 8))
                born[window.identity[[1, 7]]] = run.step
            if run.step in (3, 6):
                parts = [torch.arange(end - 1, start - 1, -1) for start, end in run.features.groups]
                run.features.permute(torch.cat(parts))

        def check(self, window: Any, step: int) -> None:
            for position, identity in enumerate(window.identity.tolist()):
                first = max(step - 3, int(born[identity]) + 1)
                counts = [int(fired[t - 1][identity]) for t in range(first, step + 1)]
                steps, tokens = sum(count > 0 for count in counts), sum(counts)
                assert window.age[position] == step - born[identity]
                assert window.mature()[position] == (step - born[identity] >= 4)
                assert window.steps_fired[position] == steps
                assert window.tokens_fired[position] == tokens
                if counts:
                    rate = window.rate("step")[position]
                    assert rate == pytest.approx(steps / len(counts))
                    rate = window.rate("token")[position]
                    assert rate == pytest.approx(tokens / (TOKENS * len(counts)))

    trainer = train(Spy, architecture=architecture, options={"firing-window": {"window": 4}})
    window = trainer.run.plugin("firing-window")
    everybody = torch.arange(D_SAE)
    ordered = window.in_first_order(everybody)
    assert torch.equal(window.identity[ordered], everybody)
    silent = ((window.age >= 4) & (window.steps_fired == 0)).float().mean()
    assert window.silent_share() == silent


def test_rates_before_the_first_step_are_nothing() -> None:
    trainer = train(FiringWindow, steps=1)
    window = trainer.run.plugin("firing-window")
    window.age.zero_()
    assert window.rate("step").max() <= 1
    assert not window.mature().any()
