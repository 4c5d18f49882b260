"""Mechanisms that begin at a step: what to say when a run ends before it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)


def warn_if_never(name: str, start: int, run: Run) -> None:
    """Warn that plugin `name`, which starts at step `start`, will do nothing in this run."""
    if start > run.total_steps:
        logger.warning(
            "%s.start = %d is after the end of the run (%d steps), which it will not change; "
            "give --%s.start",
            name,
            start,
            run.total_steps,
            name,
        )
