"""Which scores arms are compared by, and at which L0; the one place that says what counts.

The wanted L0 stands for the one that is measured where all SAEs of the arms that are compared have
exactly that: they share the text that scores them, and miss it alike. Where one of them has not,
all stand at the L0s that were measured, the exact ones too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sae_plugins.study.findings import ReportedMetric, Score, Trained
from sae_plugins.study.metrics import least_seeds
from sae_plugins.study.statistics import Point, Question

_Place = tuple[str, str, str, int, str, str]


@dataclass(frozen=True)
class Points:
    """The SAEs of a study, with their scores."""

    trained: Sequence[Trained]
    scores: Sequence[Score]

    def question(self, model: str, metric: ReportedMetric, arm: str, reference: str) -> Question:
        """How two arms compare on a metric."""
        pair = (arm, reference)
        found = self.of(model, metric.suite, metric.name, pair)
        return Question(
            found[arm],
            found[reference],
            "higher" if metric.better == "higher" else "lower",
            metric.margin,
            least_seeds(metric.suite),
            exact=self.are_exact(model, pair),
        )

    def of(
        self, model: str, suite: str, metric: str, arms: Sequence[str], *, shown: bool = False
    ) -> dict[str, list[Point]]:
        """By arm, its SAEs on a metric; those that failed have no number.

        Args:
            model: the study's name of the model.
            suite: the metric's.
            metric: its name.
            arms: that are compared with each other.
            shown: the values themselves, in place of what tests and intervals are of.
        """
        exact = self.are_exact(model, arms)
        found: dict[str, list[Point]] = {arm: [] for arm in arms}
        for arm, points in found.items():
            for one in self._saes.get((model, arm), []):
                place = (model, arm, one.sparsity, one.seed, suite, metric)
                if one.status == "failed" or suite in one.unscored:
                    points.append(Point(one.seed, math.nan, math.nan))
                elif one.l0 is not None and (score := self._scores.get(place)):
                    l0 = one.exact_l0 if exact and one.exact_l0 else one.l0
                    value = score.value if shown else score.sample
                    points.append(Point(one.seed, l0, math.nan if value is None else value))
        return found

    def are_exact(self, model: str, arms: Sequence[str]) -> bool:
        """Whether all SAEs of arms that have an L0 have exactly the wanted one."""
        saes = (one for arm in arms for one in self._saes.get((model, arm), []))
        return all(one.exact_l0 for one in saes if one.l0 is not None)

    @cached_property
    def _saes(self) -> dict[tuple[str, str], list[Trained]]:
        found: dict[tuple[str, str], list[Trained]] = {}
        for one in self.trained:
            found.setdefault((one.model, one.arm), []).append(one)
        return found

    @cached_property
    def _scores(self) -> dict[_Place, Score]:
        return {(s.model, s.arm, s.sparsity, s.seed, s.suite, s.metric): s for s in self.scores}
