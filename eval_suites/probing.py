"""What the suites that probe labelled texts have in common."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sae_plugins.base.errors import SuiteError, did_you_mean
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.saebench.facts import bytes_of_activation
from sae_plugins.eval_suites.suite import Cost, Value

BEST_EPOCH = "SAEBench takes the best epoch of probes that it trains with torch on the test set"


def _check_distinct(what: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    if not given:
        raise ValueError(f"name a {what} at least")
    twice = next((each for each in given if given.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: name each once")
    return given


def distinct(what: str) -> AfterValidator:
    """Of a setting: refuses none at all, and the same twice."""
    return AfterValidator(partial(_check_distinct, what))


Latents = Annotated[tuple[Annotated[int, Field(ge=1)], ...], distinct("number")]
"""A setting: numbers of latents, each once."""


def known(what: str, names: Collection[str]) -> AfterValidator:
    """Of a setting: refuses any but these names of pairs or datasets, and none twice."""

    def check(given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in names:
                raise ValueError(f"no {what} {name!r}; {did_you_mean(name, names)}")
        return _check_distinct(what, given)

    return AfterValidator(check)


def cost(subject: Subject, tokens: int) -> Cost:
    """That of so many tokens, which are read once, and whose activations are kept."""
    return Cost(tokens, tokens, tokens * bytes_of_activation(subject))


def mean_over_items(
    values: Mapping[str, float | None], details: Mapping[str, Mapping[str, float | None]]
) -> dict[str, Value]:
    """SAEBench's means, each with the number and the spread of the items that have it."""
    means = {}
    for name, value in values.items():
        if value is not None:
            each = [v for row in details.values() if (v := row.get(name)) is not None]
            spread = statistics.stdev(each) if len(each) > 1 else None
            means[name] = Value(value=value, n=len(each), std=spread)
    return means


def check_reported(flag: str, wanted: Iterable[int], reported: Collection[int], d_sae: int) -> None:
    """Refuse numbers that SAEBench computes and then drops (hazard 4), or that exceed d_sae."""
    for number in wanted:
        if number not in reported:
            raise SuiteError(
                f"{flag} {number}: SAEBench drops it; it reports {', '.join(map(str, reported))}"
            )
        if number > d_sae:
            raise SuiteError(f"{flag} {number}: the SAE has only {d_sae} latents")


def check_whole(
    metrics: Mapping[str, Value],
    wanted: Iterable[str],
    details: Mapping[str, Any],
    items: Iterable[str],
) -> None:
    """Refuse a result in which something that was asked for is missing."""
    missing = [name for name in wanted if name not in metrics or metrics[name].value is None]
    missing += [item for item in items if item not in details]
    if missing:
        raise SuiteError(f"SAEBench's result lacks {', '.join(missing)}")
