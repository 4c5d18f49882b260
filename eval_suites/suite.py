"""What an evaluation suite is: the class to extend, what it is given, and what it gives back.

A suite is found by its entry point in the group `sae_plugins.eval_suites`. `prepare` computes what
depends on the language model and the data alone, once for many SAEs; `evaluate` scores one SAE:

    for (suite, seed):  prepared = suite.prepare(bench, settings, seed)
        for subject:    scores = suite.evaluate(subject, bench, settings, seed, prepared)
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, field_validator

from sae_plugins.base.values import validated
from sae_plugins.eval_suites.inputs.bench import Bench

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.data import Data
    from sae_plugins.eval_suites.inputs.subjects import Subject


class SuiteSettings(BaseModel, extra="forbid", frozen=True):
    """A suite's settings: a subclass has a field, with a description, for each."""


SHARE = (0.0, 1.0)
"""The bounds of a share."""
SCORE = (None, 1.0)
"""The bounds of a score of which 1 is perfect and 0 is that of doing nothing."""


@dataclass(frozen=True)
class Metric:
    """A row of the table that the documentation and the command print."""

    name: str
    """The field's name in SAEBench, or `Value`'s name in our result; `{k}` stands for a number."""
    paper: str
    """What papers call it."""
    meaning: str
    better: Literal["higher", "lower", "neither"]
    headline: bool = False
    bounds: tuple[float | None, float | None] = (None, None)
    """The least and the greatest value that there can be; None where there is no end."""
    margin: float | None = None
    """The smallest difference between two SAEs that matters, where a study states no other."""

    def numbers(self, name: str) -> dict[str, str] | None:
        """What stands in a result's `name` for each `{k}` of this one; None if it is another."""
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(self.name))
        match = re.fullmatch(pattern, name)
        return None if match is None else match.groupdict()


class Value(BaseModel, extra="forbid"):
    """A metric: null where it is not defined, never NaN."""

    value: float | None
    n: int | None = None
    """Over how many items (tokens, letters, pairs, datasets) it is a mean."""
    std: float | None = None
    """Sample standard deviation over these items, where they are few enough to be kept."""

    @field_validator("value", "std")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value


@dataclass
class Scores:
    """What a suite found out about one SAE."""

    metrics: dict[str, Value]
    details: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """By item (a letter, a pair of classes, a dataset), then by name."""
    warnings: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    """In what the numbers may differ from those of SAEBench itself."""
    raw: str | None = None
    """SAEBench's own JSON, unchanged."""


@dataclass(frozen=True)
class Sent:
    """What is sent to a language model elsewhere, at most, and what comes back."""

    address: str
    requests: int
    tokens_in: int
    """Of the requests, about."""
    tokens_out: int
    """Of the answers, at most."""
    price: float | None = None
    """At the prices that the user gave, in their currency."""

    def __add__(self, other: Sent) -> Sent:
        """Both, to one address."""
        prices = (self.price, other.price)
        return Sent(
            self.address,
            self.requests + other.requests,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            None if None in prices else sum(price for price in prices if price is not None),
        )

    def __str__(self) -> str:
        """All of it in words, with the price if it is known."""
        price = "" if self.price is None else f": about {self.price:,.4f} at the given prices"
        return (
            f"sends to {self.address} up to {self.requests:,} requests, about "
            f"{self.tokens_in:,} tokens in and up to {self.tokens_out:,} out{price}"
        )


@dataclass(frozen=True)
class Cost:
    """About what an evaluation takes, for `--dry_run`."""

    llm_tokens: int
    """Tokens that the language model reads, shared by all SAEs."""
    sae_tokens: int
    """Tokens that each SAE encodes."""
    disk: int
    """Bytes that are kept in the cache, shared by all SAEs."""
    sent: Sent | None = None
    """What is sent elsewhere for each SAE, at most."""


class Suite(ABC):
    """An evaluation of SAEs."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    item: ClassVar[str] = "item"
    """What `Scores.details` has a row for."""
    version: ClassVar[int] = 1
    """To be raised with every change that can move a number: results of others are not reused."""
    Settings: ClassVar[type[BaseModel]] = SuiteSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The settings of a preset that are not the defaults, which are those of `canonical`."""
    needs_model: ClassVar[bool] = True
    needs_saebench: ClassVar[bool] = False
    """Whether it calls SAEBench, which may be left out of an installation."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """What else computes its numbers: another version of one makes a result another one."""
    context: ClassVar[str | None] = None
    """The setting that says how many tokens a prompt has, which the language model must read."""
    numbers: ClassVar[str | None] = None
    """The setting that lists the numbers for which `{k}` stands in the metrics' names."""

    def settings(self, preset: str, overrides: Mapping[str, Any]) -> Any:
        """The settings of a preset with some of them replaced.

        Raises:
            SaePluginsError: names those that do not fit.
        """
        values = {**self.presets.get(preset, {}), **overrides}
        return validated(self.Settings, values, f"--{self.name}.")

    def metric_names(self, settings: Any) -> list[str]:
        """The names of the metrics that a result with these settings has."""
        numbers = getattr(settings, self.numbers) if self.numbers else ("{k}",)
        return [
            row.name.replace("{k}", str(number))
            for row in self.metrics
            for number in (numbers if "{k}" in row.name else ("",))
        ]

    def undefined_on(self, model_name: str) -> Collection[str]:
        """The metrics that mean nothing on a model, which results of its SAEs therefore lack."""
        return ()

    def refusal(self, subject: Subject) -> str | None:
        """Why this suite does not apply to an SAE, or None if it does."""
        return None

    def lack(self, settings: Any, data: Data | None) -> str | None:
        """What it takes to run and is not there, with the cure, or None: then it does not apply.

        Args:
            settings: its own.
            data: where the evaluation's data come from, if that is known.

        Raises:
            SuiteError: it was asked to run, and cannot: the row fails.
        """
        return None

    def open_text(self, settings: Any) -> str | None:
        """The name of the open text that these settings have it read, if any."""
        return None

    @abstractmethod
    def cost(self, subject: Subject, settings: Any) -> Cost:
        """About what it takes."""

    def prepare(self, bench: Bench, settings: Any, seed: int) -> Any:
        """What depends on the language model, the hook and the data alone."""
        return None

    @abstractmethod
    def evaluate(
        self, subject: Subject, bench: Bench, settings: Any, seed: int, prepared: Any
    ) -> Scores:
        """Score one SAE.

        Raises:
            SuiteError: it cannot be done, or something of the result would be missing.
        """
