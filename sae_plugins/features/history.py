"""What a run's log says of features that were reordered, merged or restarted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_plugins.base.files import read_rows
from sae_plugins.runs.feature_history import Past, read_history
from sae_plugins.runs.figures import CHANGES
from sae_plugins.runs.folder import METRICS, METRICS_BY_FEATURE

_WORDS = {"merged": "merged into others", "reset": "started again"}


@dataclass(frozen=True)
class History:
    """What happened to the features of an SAE while it was trained.

    Attributes:
        sentences: all of it, for readers.
        is_ordered: whether their order was chosen by their firing frequencies.
        past: what happened to each, by number; without those to which nothing did, as far as is
            known.
    """

    sentences: list[str] = field(default_factory=list)
    is_ordered: bool = False
    past: Mapping[int, Past] = field(default_factory=dict)


def history(folder: Path | None, provenance: Any, d_sae: int) -> History:
    """The history of an SAE.

    Args:
        folder: of its run; None where it is not here.
        provenance: what we have said of its training in its config, if we have.
        d_sae: how many features it has.
    """
    provenance = provenance if isinstance(provenance, Mapping) else {}
    found = provenance.get("reorderings")
    reorderings: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    steps = [step for step in reorderings.get("steps") or [] if type(step) is int]
    sentences = []
    if steps:
        at = f"at step {steps[0]}" if len(steps) == 1 else f"from step {steps[0]} to {steps[-1]}"
        times = "once" if len(steps) == 1 else f"{len(steps)} times"
        sentences.append(f"The features were reordered {times}, {at}.")
    for name, words in _WORDS.items():
        counts = {row["step"]: row[CHANGES + name] for row in _rows(folder)
                  if row.get(CHANGES + name)}  # fmt: skip
        if counts:
            first, last = min(counts), max(counts)
            at = f"at step {first}" if first == last else f"from step {first} to {last}"
            sentences.append(f"{sum(counts.values()):,} features were {words}, {at}.")
    past: Mapping[int, Past] = {}
    try:
        if folder is not None:
            past = read_history(folder / METRICS_BY_FEATURE, d_sae)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        sentences.append(
            f"{METRICS_BY_FEATURE} is damaged ({error}): what happened to single features is not "
            "known."
        )
    return History(sentences, bool(steps), past)


def _rows(folder: Path | None) -> list[dict[str, Any]]:
    if folder is not None:
        with contextlib.suppress(OSError, ValueError):
            return [row for row in read_rows(folder / METRICS) if type(row.get("step")) is int]
    return []
