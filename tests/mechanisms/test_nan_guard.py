"""The guard that stops a run whose loss is no longer finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sae_plugins import Plugin, PluginError, hookimpl
from sae_plugins.mechanisms.nan_guard import NanGuard
from sae_plugins.testing import PluginContract, train


class TestContract(PluginContract):
    plugin = "nan-guard"
    options = {"every": 5}


def broken_from(step: int, value: float) -> type[Plugin]:
    class Breaker(Plugin):
        name = "breaker"
        last = 0

        @hookimpl
        def extra_losses(self, run: Any) -> dict[str, torch.Tensor]:
            type(self).last = run.step
            return {"term": run.sae.b_dec.sum() * 0 + (value if run.step >= step else 1.0)}

    return Breaker


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_stops_soon_and_names_the_step_and_the_term(value: float) -> None:
    breaker = broken_from(7, value)
    with pytest.raises(PluginError) as caught:
        train(breaker, NanGuard, steps=100)
    message = str(caught.value)
    assert message.startswith("plugin 'nan-guard', event 'step_ended': ")
    assert "not finite since step 7; largest terms: breaker/term = " in message
    assert "Try a lower --lr" in message
    assert breaker.last == 50


def test_looking_more_often_stops_sooner() -> None:
    breaker = broken_from(7, math.nan)
    with pytest.raises(PluginError, match="since step 7"):
        train(breaker, NanGuard, options={"nan-guard": {"every": 4}}, steps=20)
    assert breaker.last == 8


def test_the_last_steps_are_looked_at_when_training_ends() -> None:
    breaker = broken_from(7, math.nan)
    with pytest.raises(PluginError, match=r"event 'training_ended': .* since step 7"):
        train(breaker, NanGuard, steps=9)
    assert breaker.last == 9


def test_a_finite_run_is_left_alone() -> None:
    guard = train(broken_from(100, math.nan), NanGuard, steps=60).host.plugins[1]
    assert guard.seen == []


def test_at_most_a_hundred_steps_may_pass_between_looks() -> None:
    with pytest.raises(PluginError, match=r"--nan-guard\.every 101: it must be at most 100"):
        train(NanGuard, options={"nan-guard": {"every": 101}})
