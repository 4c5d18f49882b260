import pytest
import torch
from sae_target_l0 import TargetL0, next_log_multiplier

from sae_plugins.testing import PluginContract, train


class TestTargetL0(PluginContract):
    """What every plugin promises, on every architecture."""

    plugin = TargetL0
    options = {"l0": 2.0, "rate": 0.1}


def test_the_coefficient_rises_while_too_many_features_fire():
    before = torch.tensor(0.5)
    assert next_log_multiplier(before, torch.tensor(40.0), 20.0, 0.1) > before
    assert next_log_multiplier(before, torch.tensor(10.0), 20.0, 0.1) < before
    assert next_log_multiplier(before, torch.tensor(20.0), 20.0, 0.1) == before


@pytest.mark.parametrize("l0", [2.0, 4.0])
def test_l0_is_reached(l0):
    trainer = train("target-l0", steps=400, options={"target-l0": {"l0": l0, "rate": 0.03}})
    assert float(trainer.run.metrics["target-l0/l0"]) == pytest.approx(l0, rel=0.3)
