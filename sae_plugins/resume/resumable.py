"""What checkpoints ask of a trainer, and of where its batches come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sae_plugins.base.identity import Fact


def has_state(provider: Any) -> bool:
    """Whether a provider of data has a place that can be saved."""
    return hasattr(provider, "state_dict") and hasattr(provider, "load_state_dict")


class Resumable(Protocol):
    """A trainer, as its checkpoints see it.

    Attributes:
        sae: the SAE in training.
        data_provider: where its batches come from.
        n_training_steps: completed training steps.
    """

    sae: Any
    data_provider: Any
    n_training_steps: int

    def facts(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        ...

    def made_from(self) -> dict[str, Fact | None]:
        """What the SAE is made from besides the data, such as the code."""
        ...

    def versions(self) -> dict[str, str]:
        """The versions of what takes part, by name; others may change the last digit."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, between two steps."""
        ...

    def state_of_plugins(self) -> dict[str, Any]:
        """The part of the state that others have written, and that may be anything."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a trainer that was built in the same way where another one was."""
        ...

    def is_finite(self) -> bool:
        """Whether no weight and no gradient that is held is NaN or infinite."""
        ...

    def replicated(self) -> dict[str, Any]:
        """The part of the state that must be the same on all ranks: without what only observes."""
        ...
