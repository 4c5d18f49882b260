"""A study's findings, found by name: what both the tables and the pictures of its report need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import get_args

from sae_plugins.base.files import read_rows
from sae_plugins.runs.folder import METRICS
from sae_plugins.study import traces
from sae_plugins.study.by_l0 import AtL0, by_l0, exception
from sae_plugins.study.existing import ExistingSAE
from sae_plugins.study.figures import Look, looks
from sae_plugins.study.findings import ArmInfo, Findings, ReportedMetric, Score, Trained
from sae_plugins.study.points import Points
from sae_plugins.study.ranges import Ranges, ranges
from sae_plugins.study.spec import Family, Kind
from sae_plugins.study.statistics import Comparison
from sae_plugins.study.tuning import Tuned
from sae_plugins.study.words import DECIDED

Place = tuple[str, str, str, str]
"""Model, arm, suite and metric."""
Values = dict[Place, dict[str, dict[int, float]]]
_MOST_SHOWN = 10
"""More arms than these are drawn only when the reader asks for them: lines hide each other."""


@dataclass(frozen=True)
class Facts:
    """Findings with indexes."""

    findings: Findings
    folder: Path
    formats: tuple[str, ...] = ()
    """Of figures, besides PNG: "pdf", "svg"."""
    rows: dict[str, traces.Trace] = field(default_factory=dict)
    """Of runs' `metrics.jsonl`, by folder, as far as they were read."""

    @cached_property
    def arms(self) -> dict[str, ArmInfo]:
        """By name, in the order of all tables and figures: the reference first, then by kind."""
        kinds = get_args(Kind)
        order = sorted(
            self.findings.arms, key=lambda arm: (arm.name != self.reference, kinds.index(arm.kind))
        )
        return {arm.name: arm for arm in order}

    @property
    def reference(self) -> str:
        """The arm that others are compared with."""
        return self.findings.study.reference

    @cached_property
    def models(self) -> list[str]:
        """Their names."""
        return list(self.findings.study.models)

    @cached_property
    def existing(self) -> dict[tuple[str, str], list[ExistingSAE]]:
        """By model and arm, the SAEs of arms that are not trained; empty where there are none."""
        arms = self.findings.study.arms.items()
        return {
            (model, name): arm.saes_on(model)
            for name, arm in arms
            for model in self.models
            if arm.exists
        }

    @cached_property
    def comparisons(self) -> dict[Place, Comparison]:
        """By model, arm, suite and metric."""
        return {(c.model, c.arm, c.suite, c.metric): c.comparison for c in self.findings.contrasts}

    @cached_property
    def families(self) -> dict[Place, Family]:
        """What each of these comparisons is corrected with."""
        return {(c.model, c.arm, c.suite, c.metric): c.family for c in self.findings.contrasts}

    @cached_property
    def by_l0(self) -> dict[Place, list[AtL0]]:
        """What each of these comparisons finds at single L0s."""
        return {
            place: by_l0(self.points.question(place[0], metric, place[1], self.reference))
            for place, metric in self._metrics.items()
        }

    @cached_property
    def exceptions(self) -> dict[Place, str]:
        """At which L0s an arm is worse though it is better on average, or better though worse."""
        return {
            place: exception(
                self.comparisons[place], "lower" if metric.better == "lower" else "higher",
                self.by_l0[place],
            )
            for place, metric in self._metrics.items()
        }  # fmt: skip

    @cached_property
    def over(self) -> dict[str, Ranges[Place]]:
        """By model, the L0s that comparisons with a verdict are over."""
        found = {}
        for model in self.models:
            exact, measured = {}, {}
            for place in self._metrics:
                l0s, one = self.by_l0[place], self.comparisons[place]
                if place[0] == model and l0s and one.l0 and one.verdict != "no verdict":
                    if self.points.are_exact(model, (place[1], self.reference)):
                        exact[place] = tuple(at.l0 for at in l0s)
                    else:
                        measured[place] = one.l0
            found[model] = ranges(exact, measured)
        return found

    @cached_property
    def _metrics(self) -> dict[Place, ReportedMetric]:
        """Of all comparisons."""
        places = {
            (model, arm, metric.suite, metric.name): metric
            for model in self.models
            for arm in self.arms
            for metric in self.compared(model)
        }
        return {place: metric for place, metric in places.items() if place in self.comparisons}

    @cached_property
    def runs(self) -> dict[tuple[str, str], dict[str, list[Trained]]]:
        """By model and arm, then by sparsity, in order of L0."""
        found: dict[tuple[str, str], dict[str, list[Trained]]] = {}
        for one in self.findings.trained:
            found.setdefault((one.model, one.arm), {}).setdefault(one.sparsity, []).append(one)
        return {
            place: dict(sorted(by_sparsity.items(), key=lambda each: l0_of(each[1]) or math.inf))
            for place, by_sparsity in found.items()
        }

    @cached_property
    def values(self) -> Values:
        """By model, arm, suite and metric, then by sparsity and seed."""
        return self._found(lambda score: score.value)

    @cached_property
    def samples(self) -> Values:
        """What intervals over seeds are of, found like `values`."""
        return self._found(lambda score: score.sample)

    def _found(self, number: Callable[[Score], float | None]) -> Values:
        found: Values = {}
        for s in self.findings.scores:
            if (value := number(s)) is not None:
                place = (s.model, s.arm, s.suite, s.metric)
                found.setdefault(place, {}).setdefault(s.sparsity, {})[s.seed] = value
        return found

    @cached_property
    def points(self) -> Points:
        """Which scores arms are compared by."""
        return Points(self.findings.trained, self.findings.scores)

    @cached_property
    def tuned(self) -> dict[str, dict[str, Tuned]]:
        """By model and arm, the learning rates that were tried."""
        found: dict[str, dict[str, Tuned]] = {}
        for one in self.findings.tuned:
            found.setdefault(one.model, {})[one.arm] = one
        return found

    @cached_property
    def middle_l0(self) -> dict[str, float | None]:
        """By model, the L0 at which SAEs are shown: that of the reference's middle sparsity."""
        found = {}
        for model in self.models:
            means = [l0_of(runs) for runs in self.runs.get((model, self.reference), {}).values()]
            known = [mean for mean in means if mean is not None]
            found[model] = known[len(known) // 2] if known else None
        return found

    @cached_property
    def middle(self) -> dict[tuple[str, str], str]:
        """By model and arm, the sparsity whose L0 is nearest to the model's middle one."""
        found = {}
        for (model, arm), by_sparsity in self.runs.items():
            target = self.middle_l0[model]
            distances = {
                sparsity: abs(math.log(mean / target))
                for sparsity, runs in by_sparsity.items()
                if target and (mean := l0_of(runs))
            }
            if distances:
                found[model, arm] = min(distances, key=distances.__getitem__)
        return found

    @cached_property
    def shown(self) -> list[str]:
        """The arms that are drawn at first: the reference and those with most to say."""
        decided = Counter(
            arm for (_, arm, _, _), found in self.comparisons.items() if found.verdict in DECIDED
        )
        others = [arm for arm in self.arms if arm != self.reference]
        first = sorted(others, key=lambda arm: -decided[arm])[: _MOST_SHOWN - 1]
        return [arm for arm in self.arms if arm == self.reference or arm in first]

    @cached_property
    def looks(self) -> dict[str, Look]:
        """How each arm is drawn; the reference first."""
        return looks(self.arms)

    def unit(self, model: str) -> str:
        """What a model's activations are of."""
        found = self.findings.models.get(model)
        return "samples" if found and found.is_synthetic else "tokens"

    def compared(self, model: str) -> list[ReportedMetric]:
        """The metrics of a model that get verdicts."""
        return [metric for metric in self.findings.metrics.get(model, []) if metric.compared]

    def label(self, model: str, metric: ReportedMetric) -> str:
        """What papers call the metric, with more where several are called that."""
        namesakes = [m for m in self.findings.metrics[model] if m.paper == metric.paper]
        if metric.paper.startswith("("):
            return metric.name
        if len(namesakes) == 1:
            return metric.paper
        of_suite = [m for m in namesakes if m.suite == metric.suite]
        return f"{metric.paper} ({metric.suite if len(of_suite) == 1 else metric.name})"

    def at_middle(self, model: str, arm: str) -> list[Trained]:
        """An arm's SAEs at its middle sparsity."""
        sparsity = self.middle.get((model, arm))
        runs = self.runs.get((model, arm), {}).get(sparsity, []) if sparsity is not None else []
        return [run for run in runs if run.status == "ok"]

    def rows_of(self, run: Trained) -> traces.Trace:
        """Of a run's `metrics.jsonl`; none if it cannot be read."""
        if run.folder not in self.rows:
            try:
                rows = read_rows(self.folder / run.folder / METRICS)
            except (OSError, ValueError):
                rows = []
            self.rows[run.folder] = rows
        return self.rows[run.folder]


def l0_of(runs: Iterable[Trained]) -> float | None:
    """Of the SAEs of one sparsity: what is wanted, where all have exactly that, else their mean."""
    known = [run for run in runs if run.l0 is not None]
    wanted = {run.exact_l0 for run in known}
    if len(wanted) == 1 and (exact := wanted.pop()):
        return exact
    return fmean(run.l0 for run in known if run.l0 is not None) if known else None
