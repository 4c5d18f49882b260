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
