"""What a study concludes, and with which power, in sentences: how its report opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import get_args

from sae_plugins.study import equal_l0, tuning
from sae_plugins.study.facts import Facts, Place
from sae_plugins.study.findings import ArmInfo, ReportedMetric
from sae_plugins.study.spec import Family
from sae_plugins.study.statistics import Comparison, Verdict
from sae_plugins.study.words import DECIDED, number

_ALL_ALIKE: dict[Verdict, str] = {
    "equivalent": "Equivalent to {reference} on every metric",
    "not distinguishable": "Not distinguishable from {reference} on any metric",
    "underpowered": "Underpowered on every metric, so this study cannot tell whether they differ "
    "from {reference} (in brackets is what was measured)",
    "no verdict": "No verdict, for reasons that are below the table of verdicts",
}
"""What is said of arms that have the same verdict on all metrics."""
_ONE_SEED = "One seed, which gives no verdict (in brackets are its scores)"

_Found = list[tuple[ReportedMetric, Comparison]]


@dataclass(frozen=True)
class Answer:
    """What the verdicts of one model and family say, for whoever reads nothing else."""

    title: str
    """Empty where there is one answer."""
    seeds: int
    """How many; likewise the metrics that are compared."""
    metrics: int
    l0s: str
    """Which ones most comparisons are over; empty where there is none."""
    learning_rates: str
    """Which ones the arms have, as the end of a sentence; empty where that is not known."""
    equal_l0: str
    """How L0 is made equal, in sentences; empty where there is no SAE."""
    power: str
    """What differences are found, a sentence; empty where nothing was tested."""
    said: Sequence[tuple[ArmInfo, str, str]]
    """Arms, at which L0s each was compared where others were not, and what each "is"."""
    alike: Sequence[str]
    """Sentences about arms that have the same verdict on all metrics."""
    judged: bool
    """Whether there is any verdict."""


def answers(facts: Facts) -> list[Answer]:
    """By model; primary comparisons before exploratory ones."""
    families = [family for family in get_args(Family) if family in facts.families.values()]
    titled = len(facts.models) > 1 or len(families) > 1
    return [
        _answer(facts, model, family, titled=titled)
        for family in families or ["all"]
        for model in facts.models
    ]


def summary(facts: Facts, model: str, arm: str) -> str:
    """What an arm is on one model, in a few words."""
    found = _found(facts, model, arm, None)
    verdicts = {comparison.verdict for _, comparison in found}
    if verdicts <= {"no verdict"}:
        return "no verdict"
    if verdicts == {"not distinguishable"}:
        return "not distinguishable on any metric"
    return _parts(facts, model, arm, found)


def _answer(facts: Facts, model: str, family: Family, *, titled: bool) -> Answer:
    everything = [found for arm in facts.arms for found in _found(facts, model, arm, family)]
    said, alike = _said(facts, model, family)
    name = {"all": "", "primary": "primary comparisons", "exploratory": "exploratory comparisons"}
    trained = facts.findings.trained
    return Answer(
        title=", ".join(filter(None, (model, name[family]))) if titled else "",
        seeds=len({one.seed for one in trained if one.model == model and one.status == "ok"}),
        metrics=len(dict.fromkeys(metric.suite + metric.name for metric, _ in everything)),
        l0s=facts.over[model].usual,
        learning_rates=tuning.in_words(
            facts.findings.learning_rates.get(model, {}), facts.tuned.get(model, {})
        ),
        equal_l0=equal_l0.in_words(
            (one for one in trained if one.model == model), facts.reference, facts.unit(model)
        ),
        power=_power(facts, model, everything),
        said=said,
        alike=alike,
        judged=any(comparison.verdict != "no verdict" for _, comparison in everything),
    )


def _said(
    facts: Facts, model: str, family: Family
) -> tuple[list[tuple[ArmInfo, str, str]], list[str]]:
    """What is said of each arm, and of all those that have one verdict."""
    said, alike, alone = [], dict[Verdict, list[str]](), list[str]()
    for arm in facts.arms.values():
        found = _found(facts, model, arm.name, family)
        verdicts = {comparison.verdict for _, comparison in found}
        if verdicts == {"no verdict"} and (scores := _alone(facts, model, arm.name)):
            alone.append(f"{arm.name} ({scores})")
        elif len(verdicts) == 1 and not verdicts & {*DECIDED} and not _has_more(facts, model, arm):
            (verdict,) = verdicts
            shown = verdict == "underpowered"
            measured = _measured(facts, model, found[0][0], arm.name) if shown else ""
            alike.setdefault(verdict, []).append(arm.name + (f" ({measured})" if measured else ""))
        elif verdicts:
            l0s = _elsewhere(facts, model, arm.name)
            said.append((arm, l0s, _parts(facts, model, arm.name, found)))
        elif (
            family == "all"
            and arm.name != facts.reference
            and facts.existing.get((model, arm.name), True)
        ):
            alike.setdefault("no verdict", []).append(arm.name)
    sentences = [
        f"{text.format(reference=facts.reference)}: {', '.join(alike[verdict])}."
        for verdict, text in _ALL_ALIKE.items()
        if verdict in alike
    ]
    return said, sentences + ([f"{_ONE_SEED}: {', '.join(alone)}."] if alone else [])


def _found(facts: Facts, model: str, arm: str, family: Family | None) -> _Found:
    """An arm's comparisons, of one family or of all."""
    places = {(model, arm, m.suite, m.name): m for m in facts.compared(model)}
    return [
        (metric, facts.comparisons[place])
        for place, metric in places.items()
        if place in facts.comparisons and family in (None, facts.families[place])
    ]


def _parts(facts: Facts, model: str, arm: str, found: _Found) -> str:
    """On which metrics an arm has which verdict, with what was measured."""
    parts = []
    for verdict in get_args(Verdict):
        labels = [_measured(facts, model, m, arm) for m, c in found if c.verdict == verdict]
        if labels:
            on = f"{len(labels)} of" if len(labels) < len(found) else "all"
            parts.append(f"{verdict} on {on} {len(found)} ({', '.join(labels)})")
    return "; ".join(parts)


def _alone(facts: Facts, model: str, arm: str) -> str:
    """The scores of an arm that has one seed, at its middle sparsity; empty for other arms."""
    runs = facts.at_middle(model, arm)
    if len(runs) != 1 or len({r.seed for x in facts.runs[model, arm].values() for r in x}) > 1:
        return ""
    (run,) = runs
    values = {
        facts.label(model, m): facts.values.get((model, arm, m.suite, m.name), {})
        for m in facts.compared(model)
    }
    scores = [
        f"{label} {number(found[run.sparsity][run.seed])}"
        for label, found in values.items()
        if run.seed in found.get(run.sparsity, {})
    ]
    return f"at an L0 of {number(run.l0)}: {', '.join(scores)}"


def _measured(facts: Facts, model: str, metric: ReportedMetric, arm: str) -> str:
    """What was found on a metric, and what a reader of its verdict must know."""
    place = (model, arm, metric.suite, metric.name)
    found = facts.comparisons[place]
    label = facts.label(model, metric) + (" †" if metric.unreliable else "")
    if found.difference is None:
        return label
    parts = [f"{label} {number(found.difference, '+')}"]
    if found.verdict in DECIDED and found.is_small:
        shown = "shown to be less than" if found.negligible else "by less than"
        parts.append(f"{shown} the margin of {found.margin:g}")
    if facts.exceptions[place]:
        parts.append(facts.exceptions[place])
    others = facts.over[model].others
    if place in others and not _elsewhere(facts, model, arm):
        parts.append(f"at {others[place]} only")
    return " ".join(parts)


def _elsewhere(facts: Facts, model: str, arm: str) -> str:
    """At which L0s an arm is compared on all metrics, where those of other arms are others."""
    found = {facts.over[model].others.get(place, "") for place in _places(facts, model, arm)}
    return found.pop() if len(found) == 1 else ""


def _has_more(facts: Facts, model: str, arm: ArmInfo) -> bool:
    """Whether there is more to say of an arm than its verdict."""
    others, places = facts.over[model].others, _places(facts, model, arm.name)
    return any(place in others or facts.exceptions[place] for place in places)


def _places(facts: Facts, model: str, arm: str) -> list[Place]:
    return [place for place in facts.exceptions if place[:2] == (model, arm)]


def _power(facts: Facts, model: str, found: _Found) -> str:
    """The smallest difference in each metric that is found, half of the arms being noisier."""
    detected: dict[str, tuple[ReportedMetric, list[float]]] = {}
    for metric, comparison in found:
        if comparison.smallest_detectable is not None:
            _, values = detected.setdefault(facts.label(model, metric), (metric, []))
            values.append(comparison.smallest_detectable)
    if not detected:
        return ""
    shown = [
        f"{number(median(values))} in {label}"
        + (f" (margin {metric.margin:g})" if metric.margin else "")
        for label, (metric, values) in detected.items()
    ]
    return (
        "The true difference that is found with 80% power, after Holm's correction and as the "
        f"median over arms, is {', '.join(shown)}."
    )
