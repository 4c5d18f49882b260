"""Settings of the training loop that others make useless, by one rule for Python and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_plugins.framework.architectures import SHARING_A_THRESHOLD

if TYPE_CHECKING:
    from sae_plugins.framework.resolve import TrainingSettings

Values = Callable[[str], Any]
"""A run's values by name, the defaults included; None where nothing is known."""


@dataclass(frozen=True)
class Rule:
    """Some settings, the runs that use them, and what to say where another run is given one.

    The reason may name the run's {model_name}.
    """

    flags: tuple[str, ...]
    used: Callable[[Values], bool]
    reason: str


def _sets_a_threshold(value: Values) -> bool:
    if value("calibrate_l0") is not None:
        return True
    architecture = value("architecture")  # which Python names later, with the SAE
    can = architecture is None or architecture in SHARING_A_THRESHOLD
    return can and bool(value("calibrate_threshold"))


OF_TRAINING = (
    Rule(
        ("weight_decay_form",), lambda value: bool(value("weight_decay")), "it needs --weight_decay"
    ),
    Rule(
        ("calibrate_threshold",),
        lambda value: value("calibrate_l0") is None,
        "--calibrate_l0 says how many features are to be active",
    ),
    Rule(("calibrate_tokens",), _sets_a_threshold, "no threshold is set: give --calibrate_l0"),
)
"""Rules about `TrainingSettings` alone."""


def unused(given: Mapping[str, Any], settings: TrainingSettings) -> Iterator[str]:
    """What of the settings that were given changes nothing beside the others, a sentence each.

    One that is given at its default says nothing wrong.
    """
    everything, stock = settings.model_dump(), type(settings)().model_dump()
    for rule in OF_TRAINING:
        for name in rule.flags:
            moved = name in given and everything[name] != stock[name]
            if moved and not rule.used(everything.get):
                yield f"--{name}: {rule.reason}"
