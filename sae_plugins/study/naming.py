"""When a study's primary comparisons and margins were named: before a result, or after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sae_plugins.base.files import write
from sae_plugins.study.spec import Study

NAMED = "primary.json"
"""In a study's folder: what was named, when, and whether results were there."""


def remember(study: Study, folder: Path, *, results: bool) -> None:
    """Note what a study that is about to run names, if that is another thing than before."""
    before = _read(folder)
    if not study.primary and not before:
        return
    if not before or _changed(study, before[-1]):
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        named = {**_named(study), "at": now, "results": results}
        write(folder / NAMED, json.dumps([*before, named], indent=1) + "\n")


def warnings(study: Study, folder: Path) -> Iterator[str]:
    """Whether primary comparisons were named when their outcome could be known."""
    last = next(iter(_read(folder)[-1:]), None)
    if study.primary and last is not None:
        if changed := _changed(study, last):
            yield (
                "the primary comparisons are not those that the study was run with: other "
                + " and ".join(changed)
            )
        elif last["results"]:
            yield (
                f"the primary comparisons were named on {last['at'][:10]}, when there were results "
                "already: take them for exploratory ones"
            )


def _named(study: Study) -> dict[str, Any]:
    """What decides which comparisons are primary, and what they call equivalent."""
    return {"primary": study.primary, "compare": study.compare, "margins": study.margins}


def _changed(study: Study, before: dict[str, Any]) -> list[str]:
    """The keys that say other things; earlier versions have noted one of them."""
    return [key for key, value in _named(study).items() if before.get(key, value) != value]


def _read(folder: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads((folder / NAMED).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return found
