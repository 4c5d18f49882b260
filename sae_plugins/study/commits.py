"""At which commits of the Hub a study reads its data and models: looked up once, and then kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_plugins.base.files import write
from sae_plugins.runs import sources
from sae_plugins.study.makers import shared_flags
from sae_plugins.study.spec import Flags, Study
from sae_plugins.world import NAME as WORLD

FILE = "commits.json"
"""In the study's folder, so that all of its SAEs, now and later, are made from the same."""
_ASKED = (*sources.REVISIONS, *sources.REVISIONS.values(), "model_class_name")


def known(folder: Path, model: str, flags: Mapping[str, Any]) -> Flags:
    """The commits of what a model of the study names, by flag, as far as they were looked up."""
    entry = _read(folder).get(model, {})
    found: Flags = entry.get("found", {}) if entry.get("asked") == _asked(flags) else {}
    return found


def look_up(study: Study, folder: Path) -> None:
    """Look up and keep the commits that are not known yet."""
    kept = before = _read(folder)
    for name, model in study.models.items():
        flags = shared_flags(name, model)
        if known(folder, name, flags):
            continue
        found = sources.commits(flags.get("model_name") or WORLD, flags)
        if found:
            kept = {**kept, name: {"asked": _asked(flags), "found": found}}
    if kept != before:
        write(folder / FILE, json.dumps(kept, indent=1) + "\n")


def _asked(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: flags.get(name) for name in _ASKED}


def _read(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads((folder / FILE).read_text("utf-8"))
        if isinstance(found, dict):
            return found
    return {}
