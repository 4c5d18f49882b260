"""The learning rate of each arm, by pilots: at equal L0, the one that explains most variance.

One rate for all arms can decide which arm wins. The pilots have seeds of their own, and are scored
on the text that sets their thresholds: neither the seeds nor the text by which arms are compared.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator


class Tune(BaseModel, extra="forbid", frozen=True):
    """Settings that each arm gets at its best, by pilots."""

    lr: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=2, description="learning rates to try"
    )
    seeds: int = Field(2, ge=1, description="how many pilots try each, with seeds of their own")

    @field_validator("lr")
    @classmethod
    def _ascending(cls, rates: list[float]) -> list[float]:
        if len(set(rates)) < len(rates):
            raise ValueError("learning rates to try must be different from each other")
        return sorted(rates)


def finite(scores: Iterable[float | None]) -> list[float | None]:
    """Scores of pilots, None for those that failed, which are NaN, or are not there."""
    return [s if s is not None and math.isfinite(s) else None for s in scores]


def mean_score(scores: Sequence[float | None]) -> float | None:
    """The mean over pilots; None if one of them failed, or there is none."""
    known = [score for score in scores if score is not None]
    return fmean(known) if known and len(known) == len(scores) else None


class Tried(BaseModel, extra="forbid"):
    """A learning rate, and what it came to."""

    lr: float
    scores: list[float | None]
    """Explained variance, by pilot; None where it failed."""

    @property
    def score(self) -> float | None:
        """The mean over pilots; None if one of them failed, or there is none."""
        return mean_score(self.scores)


class Tuned(BaseModel, extra="forbid"):
    """The learning rates that an arm was tried with on one model."""

    model: str
    arm: str
    l0: float
    """Of all pilots."""
    tried: list[Tried]
    """In ascending order."""

    @property
    def best(self) -> float | None:
        """The rate that explains most variance; None if none could be scored."""
        scored = [(one.score, one.lr) for one in self.tried if one.score is not None]
        return max(scored)[1] if scored else None

    @property
    def edge(self) -> Literal["smallest", "largest"] | None:
        """At which end of the rates that were tried the best one is, if it is at one."""
        rates = [one.lr for one in self.tried]
        ends: dict[float | None, Literal["smallest", "largest"]]
        ends = {rates[0]: "smallest", rates[-1]: "largest"}
        return ends.get(self.best)

    @property
    def warning(self) -> str | None:
        """What makes the choice doubtful, a sentence."""
        where = f"{self.model}, {self.arm}"
        if self.best is None:
            return f"{where}: none of the learning rates under tune gives an SAE that can be scored"
        if self.edge is None:
            return None
        more = "smaller" if self.edge == "smallest" else "larger"
        return (
            f"{where}: the best learning rate, {self.best:g}, is the {self.edge} that was tried: "
            f"the true best may lie beyond; add {more} ones under tune"
        )


def in_words(rates: Mapping[str, float], tuned: Container[str]) -> str:
    """Which learning rates the arms of a model have, as the end of a sentence.

    Args:
        rates: by arm.
        tuned: the arms whose rates were chosen by pilots.
    """
    by_rate: dict[float, list[str]] = {}
    for arm, rate in rates.items():
        if arm not in tuned:
            by_rate.setdefault(rate, []).append(arm)
    given = sorted(by_rate, key=lambda rate: -len(by_rate[rate]))
    if len(rates) > sum(map(len, by_rate.values())):
        own = "; ".join(f"{', '.join(by_rate[rate])} at {rate:g}" for rate in given)
        but = f" (but {own}, untuned)" if own else ""
        return f"each at the best learning rate of those that its pilots tried{but}"
    if not given:
        return ""
    others = "; ".join(f"{rate:g} for {', '.join(by_rate[rate])}" for rate in given[1:])
    but = f" (but {others})" if others else ""
    one = f"with one learning rate for all arms, {given[0]:g}{but}"
    return f"{one}, which was tuned for none of them"
