"""The SAEs of a study: one cell for each model, arm, sparsity and seed, and where it lies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from sae_plugins.base.files import versions
from sae_plugins.base.identity import Compared, Fact
from sae_plugins.base.names import file_name
from sae_plugins.base.secrets import redacted
from sae_plugins.runs.folder import ORIGIN, RECIPE, SUMMARY
from sae_plugins.runs.summary import TUNING
from sae_plugins.settings.settings import Settings
from sae_plugins.study import origin
from sae_plugins.study.existing import ExistingSAE

Purpose = Literal["", "pilot", "tuning"]
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

SAES = "saes"
L0 = "heldout/l0"
"""The line of a run's summary at which arms are compared."""
_LEAST_AFTER, _MOST_AFTER = 4_096, 65_536
"""Tokens that are read after the last one of a training."""
_KEYED_VERSIONS = ("sae-lens",)
"""Other versions than these do not make an SAE another one; our own is known by its code."""
_LONGEST = 150
"""Letters of an arm's name in a folder's."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One SAE to train.

    Attributes:
        model: the study's name of the model.
        arm: the arm's name.
        sparsity: such as "l1_coefficient=2"; empty where the arm has one setting.
        seed: the training's.
        settings: of the run, as `sae-plugins train` would have them.
        untrained: it is left as it was drawn.
        purpose: "pilot" if it only serves to find the value that gives an L0, "tuning" if it tries
            a setting at a known one; empty if it is compared.
        made_from: what is known of its data, its model and its code.
        place: the name of the folder where it was found; None for that of its key.
        compared: where it was found, what could not be compared; else, what has changed since the
            SAE in its stead.
        existing: the SAE that exists already, so that none is trained; the folder then has what
            was found out about it.
    """

    model: str
    arm: str
    sparsity: str
    seed: int
    settings: Settings
    untrained: bool = False
    purpose: Purpose = ""
    made_from: Mapping[str, Fact | None] = field(default_factory=dict)
    place: str | None = None
    compared: Compared = field(default_factory=lambda: Compared([]))
    existing: ExistingSAE | None = None

    @property
    def source(self) -> str | None:
        """Where an SAE lies that exists already."""
        return None if self.existing is None else self.existing.source

    @property
    def pilot(self) -> bool:
        """Whether it is not among those that are compared."""
        return bool(self.purpose)

    @property
    def tuning_tokens(self) -> int:
        """After its training, by which it is scored; 0 for held-out ones."""
        if self.purpose != "tuning":
            return 0
        return self.settings.plan.training.following_tokens or tokens_after(self.settings)

    def shown(self, summary: Mapping[str, Any]) -> float:
        """What a pilot has shown, by its run's summary."""
        line = f"{TUNING}/explained_variance" if self.purpose == "tuning" else L0
        value = summary.get(line)
        return math.nan if value is None else float(value)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that the SAE depends on."""
        settings, found = redacted(self.settings.as_recipe({})), versions(_KEYED_VERSIONS)
        settings |= {"sae": self.existing.sae} if self.existing else {}
        return origin.facts(settings, self.untrained, found, self.made_from)

    @property
    def told(self) -> dict[str, Any]:
        """What its file says of that."""
        return origin.told(self.facts)

    @cached_property
    def key(self) -> str:
        """A hash of all that the SAE depends on."""
        return origin.key(self.facts)

    @property
    def folder(self) -> Path:
        """Of the run, relative to the study's; another one for another key."""
        return Path(SAES, self.model, self.place or f"{self._stem}-{self.key[: origin.DIGITS]}")

    @property
    def _stem(self) -> str:
        parts = [self.arm, self.sparsity, self.purpose, f"seed{self.seed}"]
        return "_".join(file_name(part, _LONGEST) for part in parts if part)

    def found_in(self, study_folder: Path) -> Cell:
        """The cell, with the place of an SAE in the folder that was made from the same."""
        if self._is_whole(study_folder):
            return self
        place, compared = origin.find(study_folder / self.folder.with_name(self._stem), self.facts)
        return replace(self, place=place.name if place else None, compared=compared)

    def summary(self, study_folder: Path) -> dict[str, Any] | None:
        """What the run says of itself; None if the SAE is not trained, or scored, yet."""
        folder = study_folder / self.folder
        try:
            summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return summary if self._is_whole(study_folder) else None

    def _is_whole(self, study_folder: Path) -> bool:
        return (study_folder / self.folder / (ORIGIN if self.existing else RECIPE)).is_file()


def tokens_after(settings: Settings) -> int:
    """How many tokens set thresholds, or serve to choose a setting, unless the study says it.

    No more are read than are a fifth of the training: they cost about as much.
    """
    return max(_LEAST_AFTER, min(_MOST_AFTER, int(settings.get("training_tokens")) // 5))


def grouped(items: Iterable[T], by: Callable[[T], K]) -> dict[K, list[T]]:
    """Cells, or the like, by what `by` says of each, in their order."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups
