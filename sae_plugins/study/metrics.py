"""The metrics of a study by name, SUITE/METRIC: what each means, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sae_plugins.base.errors import Problems, SaePluginsError, did_you_mean
from sae_plugins.eval_suites import registry
from sae_plugins.eval_suites.evaluation.metrics import (
    HELDOUT,
    OF_SEEDS,
    OF_THE_RUN,
    SEEDS,
    TRAINING,
    UNRELIABLE,
    _rows,
    described,
)
from sae_plugins.study.findings import ReportedMetric
from sae_plugins.study.spec import Study
from sae_plugins.study.stability import LEAST_SEEDS

OF_PAPERS = {
    (TRAINING, "loss"): "training loss, last batch",
    (HELDOUT, "mse"): "squared error per token, held out",
    ("core", "kl_div_with_sae"): "KL with the SAE, nats",
}
"""What papers print, and labels. No verdicts: these depend on the model or the form of the loss."""


_OF_NO_SUITE = {HELDOUT: OF_THE_RUN, SEEDS: OF_SEEDS}
"""Compared only where a study names them."""


def check_compared(study: Study) -> None:
    """Refuse metrics to compare that there are not, or that have no direction.

    Those of suites that the study does not run are left alone: it may extend one that does.

    Raises:
        SaePluginsError: names the metrics.
    """
    named = [("compare", name) for name in study.compare]
    named += [("margins", name) for name in study.margins]
    for arm, names in study.primary.items():
        # what is not under `compare` is refused already
        named += [(f"primary.{arm}", name) for name in names if not study.compare]
    problems = Problems()
    for key, name in named:
        with problems:
            _check(key, name, by_default=key != "compare" and not study.compare)
            if key == "margins" and study.compare and name not in study.compare:
                raise SaePluginsError(
                    f"margins: {name} is not under compare, so that its margin would do nothing; "
                    "name it there, too, or leave the margin out"
                )
    problems.stop()


def _check(key: str, name: str, *, by_default: bool) -> None:
    """Refuse what is no metric that arms are compared on, as SUITE/METRIC under a key."""
    suites = [*registry.names(), *_OF_NO_SUITE]
    suite, _, metric = name.partition("/")
    if suite not in suites:
        raise SaePluginsError(f"{key}: no suite {suite!r}: {did_you_mean(suite, suites)}")
    found = described(suite, metric)
    if found is None:
        near = did_you_mean(metric, [row.name for row in _rows(suite)])
        raise SaePluginsError(f"{key}: no metric {name!r}: {near}")
    if found.better == "neither":
        raise SaePluginsError(f"{key}: {name}: neither higher nor lower is better; leave it out")
    if by_default and (suite in _OF_NO_SUITE or not found.headline):
        raise SaePluginsError(f"{key}: {name} is not compared by default; name it under compare")


def least_seeds(suite: str) -> int:
    """How many seeds have a spread that a verdict on a suite's metrics can be judged by."""
    return LEAST_SEEDS if suite == SEEDS else 2


def shown(study: Study, results: Mapping[str, Iterable[str]]) -> list[ReportedMetric]:
    """The suites' headlines and what is compared, of the metrics that there are by suite."""
    found = []
    others = {suite: [row.name for row in rows] for suite, rows in _OF_NO_SUITE.items()}
    for suite, names in {**results, **others}.items():
        for name in names:
            row = described(suite, name)
            named = f"{suite}/{name}" in study.compare
            if row is None or not (row.headline or named):
                continue
            by_default = not study.compare and suite not in others and row.better != "neither"
            found.append(
                ReportedMetric(
                    suite=suite,
                    name=name,
                    paper=row.paper,
                    meaning=row.meaning,
                    better=row.better,
                    compared=named or by_default,
                    unreliable=UNRELIABLE.get(suite, ""),
                    bounds=row.bounds,
                    margin=study.margins.get(f"{suite}/{name}", row.margin),
                )
            )
    return found
