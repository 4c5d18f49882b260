"""What hears of a study while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What hears of one task."""

    def stage(self, text: str) -> None:
        """This is being done now."""

    def advance(self, share: float) -> None:
        """So much was done of what `Overall.expect` counts."""


class Overall(Progress, Protocol):
    """What hears of all of a study."""

    def expect(self, shares: int) -> None:
        """There is so much more to do: one for each SAE to train, and one for each to evaluate."""

    def say(self, text: str) -> None:
        """This is for the user to know."""
