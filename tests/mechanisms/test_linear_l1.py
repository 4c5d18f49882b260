"""The multipliers that depend on the step alone, and those that follow the reconstruction error."""

from __future__ import annotations

import pytest
from expected import NO_COEFFICIENT, WITH_COEFFICIENT
from hypothesis import given
from hypothesis import strategies as st

from sae_plugins import Plugin, PluginError, hookimpl
from sae_plugins.mechanisms.linear_l1 import LinearL1, linear_multiplier
from sae_plugins.testing import PluginContract, train


class TestContract(PluginContract):
    plugin = LinearL1


class TestWithAFloor(PluginContract):
    plugin = LinearL1
    options = {"floor": 0.5}


@given(total=st.integers(1, 10_000), floor=st.floats(0, 1), data=st.data())
def test_the_multiplier_falls_from_one_to_the_floor(
    total: int, floor: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(1, total))
    multiplier = linear_multiplier(step, total, floor)
    assert multiplier == max(floor, 1 - step / total)
    assert floor <= multiplier <= 1
    assert linear_multiplier(total, total) == 0
    if step > 1:
        assert multiplier <= linear_multiplier(step - 1, total, floor)


@pytest.mark.parametrize("architecture", WITH_COEFFICIENT)
def test_the_coefficient_of_each_step(architecture: str) -> None:
    name, base = WITH_COEFFICIENT[architecture]
    seen = []

    class Spy(Plugin):
        name = "spy"
        after = ("linear-l1",)

        @hookimpl
        def after_forward(self, run, step_input):
            seen.append(step_input.coefficients[name])

    train(LinearL1, Spy, architecture=architecture, steps=4)
    assert seen == pytest.approx([base * 0.75, base * 0.5, base * 0.25, 0])


@pytest.mark.parametrize("architecture", sorted(NO_COEFFICIENT))
def test_architectures_without_a_coefficient_are_refused(architecture: str) -> None:
    with pytest.raises(PluginError, match="they have no sparsity coefficient"):
        train(LinearL1, architecture=architecture, steps=1)
