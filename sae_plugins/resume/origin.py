"""What a run is made from, and whether its checkpoint was made from the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sae_plugins.base.errors import StateError
from sae_plugins.base.identity import Fact, compare, listed, of_tensors
from sae_plugins.base.saelens import is_synthetic

logger = logging.getLogger(__name__)

ACCEPTED = "accepted_changes"
"""The note, kept with checkpoints, of changes with which the run went on."""


class Origin:
    """What a run is made from, as it becomes known.

    Attributes:
        facts: an identity. Whoever knows where the data come from says so here before the run is
            built; what nobody says is found in memory.
    """

    def __init__(self, saved: Mapping[str, Any] | None, place: object, accepts: bool) -> None:
        """Begin with nothing.

        Args:
            saved: the checkpoint's contents; None where there is none.
            place: its path.
            accepts: go on with changes.
        """
        self.facts: dict[str, Fact | None] = {}
        self.accepts = accepts
        self._before: Mapping[str, Fact | None] | None = None
        if saved is not None:  # earlier versions did not know
            known = saved.get("made_from")
            self._before = known if isinstance(known, dict) else {}
        self._place = place
        self._compared: set[str] = set()

    def add(self, found: Mapping[str, Fact | None]) -> list[str]:
        """Add facts, and compare those that are new with the checkpoint's.

        Returns:
            The changes with which the run goes on, a sentence each.

        Raises:
            StateError: there are some, and nobody accepted them.
        """
        self.facts = {**found, **self.facts}
        now = {name: fact for name, fact in self.facts.items() if name not in self._compared}
        self._compared |= now.keys()
        if self._before is None:
            return []
        compared = compare({name: self._before.get(name) for name in now}, now)
        if compared.unknown:
            what = listed(compared.unknown)
            logger.warning("%s could not be compared with what %s was made from", what, self._place)
        lines = "\n  ".join(compared.changes)
        if lines and not self.accepts:
            raise StateError(
                f"what {self._place} was made from has changed, so the run would go on as another "
                f"one:\n  {lines}\nundo that, start the run again, or go on all the same with "
                "--accept_changes (in Python: accept_changes=True)"
            )
        if lines:
            logger.warning("the run goes on with changes:\n  %s", lines)
        return compared.changes


def samples(provider: Any) -> dict[str, Fact | None]:
    """What SAELens' synthetic models draw samples from, by all of its numbers."""
    from torch import Tensor

    if not is_synthetic(provider):
        return {}
    generator = vars(provider.activations_generator).items()
    tensors = {name: value for name, value in generator if isinstance(value, Tensor)}
    return {"samples": of_tensors([provider.feature_dict.state_dict(), tensors])}
