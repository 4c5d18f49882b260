"""When a study's primary comparisons were named: before there was a result, or after."""

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
    if [one["primary"] for one in before[-1:]] != [study.primary]:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        named = {"primary": study.primary, "at": now, "results": results}
        write(folder / NAMED, json.dumps([*before, named], indent=1) + "\n")


def warnings(study: Study, folder: Path) -> Iterator[str]:
    """Whether primary comparisons were named when their outcome could be known."""
    last = next(iter(_read(folder)[-1:]), None)
    if study.primary and last is not None:
        if last["primary"] != study.primary:
            yield "the primary comparisons are not those that the study was run with"
        elif last["results"]:
            yield (
                f"the primary comparisons were named on {last['at'][:10]}, when there were results "
                "already: take them for exploratory ones"
            )


def _read(folder: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads((folder / NAMED).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return found
