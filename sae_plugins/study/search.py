"""The best settings of an arm among those that a search proposes, by pilots; optuna proposes.

Its trials are pilots like those of `tune`: at equal L0, with seeds of their own, scored by the
variance that they explain of text by which arms are not compared. What optuna proposes follows from
the scores alone, so that it is proposed again, and nothing of its own is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, model_validator

from sae_plugins.base.extras import imported
from sae_plugins.settings.values import as_text
from sae_plugins.study.tuning import finite, mean_score

_DIGITS = 3
"""Of the numbers that are proposed: more would tell nothing."""


class Range(BaseModel, extra="forbid", frozen=True):
    """Numbers between two, these included; whole ones if both are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="try as many between 1 and 10 as between 10 and 100")

    @model_validator(mode="after")
    def _is_range(self) -> Range:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ValueError("low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low that is greater than 0")
        return self


def _several(values: list[Any]) -> list[Any]:
    if len({as_text(value) for value in values}) < max(2, len(values)):
        raise ValueError("give two values at least, each once")
    return values


Choices = Annotated[list[str | int | float | bool], AfterValidator(_several)]


class Search(BaseModel, extra="forbid", frozen=True):
    """Settings of which an arm gets the best that a search finds."""

    over: dict[str, Range | Choices] = Field(
        min_length=1,
        description="by flag: {low: 0.01, high: 1, log: true}, or the values that it may have",
    )
    trials: int = Field(16, ge=2, description="how many settings are tried")
    at_once: int = Field(4, ge=1, description="how many are proposed before their scores are known")
    seeds: int = Field(2, ge=1, description="how many pilots try each, with seeds of their own")


class Trial(BaseModel, extra="forbid"):
    """Settings, and what they came to."""

    flags: dict[str, Any]
    scores: list[float | None]
    """Explained variance, by pilot; None where it failed."""

    @property
    def score(self) -> float | None:
        """The mean over pilots; None if one of them failed, or there is none."""
        return mean_score(self.scores)

    @property
    def said(self) -> str:
        """The settings, in words."""
        return ", ".join(f"{flag} {as_text(value)}" for flag, value in self.flags.items())


class Searched(BaseModel, extra="forbid"):
    """The settings that an arm was tried with on one model."""

    model: str
    arm: str
    l0: float
    """Of all pilots."""
    trials: list[Trial]
    """In the order in which they were proposed."""

    @property
    def best(self) -> Trial | None:
        """The one that explains most variance; None if none could be scored."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return max(scored, key=lambda trial: trial.score or 0, default=None)

    @property
    def warning(self) -> str:
        """What the choice is worth, a sentence."""
        where = f"{self.model}, {self.arm}"
        if self.best is None:
            return f"{where}: none of the settings under search gives an SAE that can be scored"
        return (
            f"{where}: {len(self.trials)} settings were tried by a search, whose own scores are "
            f"exploratory; the arm has the best of them, {self.best.said}, and is compared on "
            "seeds and text that the search has not seen"
        )


Score = Callable[[Mapping[str, Any]], Sequence[float | None] | None]
"""The scores of the pilots of some settings, NaN for one that failed; None while one is missing."""


def run(search: Search, score: Score, arm: str) -> tuple[list[Trial], bool]:
    """Have settings proposed and scored, as far as that is known.

    Args:
        search: what is searched.
        score: is asked about every setting, also when others are not known yet.
        arm: whose settings they are, by which arms are searched differently.

    Returns:
        The trials that are known, and whether these are all.

    Raises:
        SaePluginsError: optuna is not installed.
    """
    optuna = imported("optuna", "search", "search")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=sum(arm.encode()), constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = {flag: _distribution(optuna, of) for flag, of in search.over.items()}
    trials: list[Trial] = []
    while len(trials) < search.trials:
        count = min(search.at_once, search.trials - len(trials))
        asked = [study.ask(space) for _ in range(count)]
        flags = [{flag: _rounded(value) for flag, value in one.params.items()} for one in asked]
        scored = [score(of) for of in flags]
        for one, of, scores in zip(asked, flags, scored, strict=True):
            if scores is None or None in scores:
                return trials, False
            trial = Trial(flags=of, scores=finite(scores))
            trials.append(trial)
            if trial.score is None:
                study.tell(one, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(one, trial.score)
    return trials, True


def _distribution(optuna: Any, of: Range | list[Any]) -> Any:
    if isinstance(of, list):
        return optuna.distributions.CategoricalDistribution(of)
    whole = isinstance(of.low, int) and isinstance(of.high, int)
    kind = "IntDistribution" if whole else "FloatDistribution"
    return getattr(optuna.distributions, kind)(of.low, of.high, log=of.log)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
