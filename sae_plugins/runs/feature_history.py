"""What happened to each feature while its SAE was trained: where it began, what it took in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_plugins.base.files import read_rows, write
from sae_plugins.framework.features import FeatureChange, Merged, Permuted
from sae_plugins.framework.plugin import Stateful

_COLUMNS = {
    **{"slot": -1, "place": -1, "started": 0, "into": -1, "into_at": 0},
    **{"took": -1, "took_at": 0, "times": 0},
}
"""Of each feature, and what they are where nothing has happened; see `FeatureHistory.kept`."""
_OF_ONE = ("took", "took_at", "times")
"""What a feature that starts again has not done."""


@dataclass(frozen=True)
class Past:
    """What happened to one feature. Features are named by their places in the SAE that is saved.

    Attributes:
        place: where it was when it began.
        started: the step at which it started again, without what had been there; 0 if never.
        into: the feature into which what had been there was merged, then or earlier; None if that
            never happened, or that feature has started again since.
        into_at: the step at which that was; 0 if never.
        took: in whose place is what was merged into it last.
        took_at: the step at which that was; 0 if never.
        times: how many features were merged into it.
    """

    place: int
    started: int = 0
    into: int | None = None
    into_at: int = 0
    took: int | None = None
    took_at: int = 0
    times: int = 0


class FeatureHistory(Stateful):
    """Follows features through all changes, on memory that does not grow with them.

    Attributes:
        kept: arrays [d_sae] that move with the features; empty until the first change. `slot` is
            where a feature's slot was at first, which starting again does not change; `into` and
            `took` are slots, too.
    """

    def __init__(self, d_sae: int) -> None:
        """Nothing has happened."""
        self.d_sae = d_sae
        self.kept: dict[str, NDArray[np.int32]] = {}

    def see(self, step: int, change: FeatureChange) -> None:
        """Take down a change that has been carried out at a step."""
        kept = self.kept = self.kept or self._at_first()
        if isinstance(change, Permuted):
            order = change.order.cpu().numpy()
            self.kept = {name: values[order] for name, values in kept.items()}
        elif isinstance(change, Merged):
            into, source = change.into.cpu().numpy(), change.source.cpu().numpy()
            self._start_again(step, source)
            kept["into"][source], kept["into_at"][source] = kept["slot"][into], step
            kept["took"][into] = kept["slot"][source]
            kept["took_at"][into] = step
            kept["times"][into] += 1
        else:
            self._start_again(step, change.index.cpu().numpy())

    def _at_first(self) -> dict[str, NDArray[np.int32]]:
        kept = {name: np.full(self.d_sae, value, np.int32) for name, value in _COLUMNS.items()}
        kept["slot"][:] = kept["place"][:] = np.arange(self.d_sae)
        return kept

    def _start_again(self, step: int, index: NDArray[Any]) -> None:
        kept = self.kept
        for name in _OF_ONE:
            kept[name][index] = _COLUMNS[name]
        kept["place"][index], kept["started"][index] = index, step

    def found(self) -> dict[int, Past]:
        """What happened to features, by their places now; without those to which nothing did."""
        if not self.kept:
            return {}
        columns = [self.kept[name].tolist() for name in _COLUMNS]
        slots, started = columns[0], columns[2]
        now = {slot: place for place, slot in enumerate(slots)}
        found = {}
        for number, (_, place, start, into, into_at, took, took_at, times) in enumerate(
            zip(*columns, strict=True)
        ):
            heir = now.get(into)
            if heir is not None and started[heir] > into_at:  # another feature by now
                heir, into_at = None, 0
            past = Past(place, start, heir, into_at, now.get(took), took_at, times)
            if past != Past(number):
                found[number] = past
        return found

    def write(self, path: Path) -> None:
        """Write a row for each feature to which something happened; no file if that is none."""
        rows = [{"feature": number} | _said(past) for number, past in self.found().items()]
        if rows:
            write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _said(past: Past) -> dict[str, int]:
    """The place, and what is not as for a feature to which nothing else happened."""
    untouched = asdict(Past(-1))
    return {name: value for name, value in asdict(past).items() if value != untouched[name]}


def read_history(path: Path, d_sae: int) -> dict[int, Past]:
    """What a file says of the features of an SAE.

    Raises:
        OSError: it is not there.
        ValueError: it is damaged, or of another SAE.
    """
    found = {}
    for row in read_rows(path):
        try:
            number, past = row.pop("feature"), Past(**row)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"a row has another form: {error!r}") from error
        steps = past.started, past.into_at, past.took_at, past.times
        named = number, past.place, *(i for i in (past.into, past.took) if i is not None)
        if not all(type(value) is int and value >= 0 for value in (*steps, *named)):
            raise ValueError(f"feature {number}: these are no steps and features")
        if max(named) >= d_sae:
            raise ValueError(f"feature {number}: there is no feature {max(named)}")
        found[number] = past
    return found
