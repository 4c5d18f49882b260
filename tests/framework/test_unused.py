"""Settings of the training loop that others make useless are refused in Python, too."""

from __future__ import annotations

from typing import Any

import pytest

from sae_plugins import PluginError, plugins
from sae_plugins.framework.resolve import TrainingSettings
from sae_plugins.framework.unused import unused

USELESS: list[tuple[dict[str, Any], str]] = [
    ({"calibrate_tokens": 99}, "--calibrate_tokens: no threshold is set: give --calibrate_l0"),
    ({"weight_decay_form": "coupled"}, "--weight_decay_form: it needs --weight_decay"),
    (
        {"calibrate_threshold": True, "calibrate_l0": 3},
        "--calibrate_threshold: --calibrate_l0 says how many features are to be active",
    ),
]
USED: list[dict[str, Any]] = [
    {"calibrate_tokens": 99, "calibrate_l0": 3},
    {"calibrate_tokens": 99, "calibrate_threshold": True},
    {"weight_decay_form": "coupled", "weight_decay": 0.1},
    TrainingSettings().model_dump(),
]


@pytest.mark.parametrize(("training", "said"), USELESS)
def test_what_changes_nothing_is_refused(training: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError) as caught, plugins(training=training):
        pass
    assert caught.value.args == (said,)


@pytest.mark.parametrize("training", USED)
def test_what_changes_something_is_not(training: dict[str, Any]) -> None:
    with plugins(training=training) as plan:
        assert [*unused(training, plan.training)] == []
    assert training.items() <= plan.training.model_dump().items()


def test_a_method_s_decay_counts_and_all_of_it_is_said_at_once() -> None:
    with plugins("hierarchical", training={"weight_decay_form": "coupled"}):
        pass
    both = {"weight_decay_form": "coupled", "calibrate_tokens": 99}
    with pytest.raises(PluginError) as caught, plugins(training=both):
        pass
    assert len(caught.value.args) == 2
