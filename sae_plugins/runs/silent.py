"""How many features of a run fire nowhere, and at which tokens that was counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.files import read_json
from sae_plugins.framework.resolve import UNCALIBRATED
from sae_plugins.recipes import load
from sae_plugins.runs.folder import CONFIG, RECIPE, SUMMARY
from sae_plugins.runs.summary import HELDOUT

WHY = (
    "Each count of silent features is at other tokens, so they differ: the more tokens there are, "
    "the fewer features fire at none of them."
)


@dataclass(frozen=True)
class Silent:
    """A count of silent features.

    Attributes:
        name: of the line of the summary.
        count: how many of how many, in words.
        tokens: at which, in words.
    """

    name: str
    count: str
    tokens: str


def silent(folder: Path) -> list[Silent]:
    """What a run's summary says of silent features; nothing where there is none to read."""
    try:
        summary, d_sae = read_json(folder / SUMMARY), int(read_json(folder / CONFIG)["d_sae"])
        return [*_counts(summary, d_sae, folder)]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _counts(summary: dict[str, Any], d_sae: int, folder: Path) -> Iterator[Silent]:
    dead = summary.get("training/dead_features")
    if dead is not None:
        yield _dead(f"{dead:,} of {d_sae:,}", folder, summary.get("training/steps"))
    for group in (HELDOUT, UNCALIBRATED):
        share, tokens = (summary.get(f"{group}/{name}") for name in ("never_fired", "tokens"))
        if share is not None and tokens is not None:
            yield Silent(
                f"{group}/never_fired",
                f"{round(share * d_sae):,} of {d_sae:,}",
                f"fire at none of {tokens:,} held-out tokens",
            )


def _dead(count: str, folder: Path, trained: int | None) -> Silent:
    """How many SAELens calls dead, and at which tokens of the training these are silent."""
    name = "training/dead_features"
    try:
        recipe = load(str(folder / RECIPE))
        steps = int(recipe["dead_feature_window"])
        tokens = steps * int(recipe["train_batch_size_tokens"])
    except (SaePluginsError, OSError, ValueError, LookupError, TypeError):
        where = "fire in none of the last --dead_feature_window steps of the training"
        return Silent(name, count, where)
    if trained is not None and trained <= steps:
        why = f"since a feature is dead after {steps:,} silent steps, and the training had"
        return Silent(name, "not known yet", f"{why} {trained:,}")
    where = f"fire at none of the last {tokens:,} tokens of the training ({steps:,} steps)"
    return Silent(name, count, where)
