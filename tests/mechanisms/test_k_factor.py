"""Another k for the first part of a run."""

from __future__ import annotations

import pytest

from sae_plugins import plugins
from sae_plugins.mechanisms.k_factor import KFactor
from sae_plugins.testing import PluginContract, advance, tiny_batches, tiny_sae, tiny_trainer


class TestContract(PluginContract):
    """Up to the middle."""

    plugin = KFactor
    options = {"until": 0.5}


@pytest.mark.parametrize(
    ("architecture", "factor", "k"), [("topk", 1.5, 6), ("batchtopk", 1.4, 5.6)]
)
def test_k_is_another_up_to_that_step(architecture: str, factor: float, k: float) -> None:
    batches = tiny_batches(steps=5)
    with plugins(KFactor, options={"k-factor": {"factor": factor, "until": 3}}):
        trainer = tiny_trainer(tiny_sae(architecture), batches)
    ks = []
    for batch in batches:
        advance(trainer, [batch])
        ks.append(trainer.sae.cfg.k)
    assert ks == [pytest.approx(k)] * 3 + [4] * 2


@pytest.mark.parametrize(
    ("until", "said"),
    [
        (0, "k-factor does nothing in this run, which has 5 steps"),
        (5, "k-factor: the SAE has 1.5 times the k that was given to the end, since the run has 5"),
        (4, ""),
    ],
)
def test_a_run_with_one_k_is_warned_of(
    until: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with plugins(KFactor, options={"k-factor": {"until": until}}):
        tiny_trainer(tiny_sae("topk"), tiny_batches(steps=5))
    assert said in caplog.text
    assert bool(said) == ("WARNING" in caplog.text)
