"""The metrics of a study by name, SUITE/METRIC: what each means, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sae_plugins.eval_suites import registry
from sae_plugins.eval_suites.suite import Metric as SuiteMetric
from sae_plugins.plugin import did_you_mean
from sae_plugins.study.findings import Metric
from sae_plugins.study.spec import Study, StudyError

HELDOUT, TRAINING = "heldout", "training"
OF_THE_RUN = (
    SuiteMetric("l0", "L0", "active features per held-out token", "neither", True),
    SuiteMetric(
        "explained_variance", "explained variance", "1 - squared error / variance, held out",
        "higher", True,
    ),
    SuiteMetric("never_fired", "never fired", "share of features, held out", "lower", True),
    SuiteMetric("mse", "squared error", "per held-out token, summed over d_in", "lower"),
    SuiteMetric("cosine", "cosine", "between activations and reconstructions, held out", "higher"),
    SuiteMetric("tokens", "held-out tokens", "how many the numbers are of", "neither"),
)  # fmt: skip
"""What every run says of itself, from text that it was not trained on."""
OF_PAPERS = {
    (TRAINING, "loss"): "training loss, last batch",
    (HELDOUT, "mse"): "squared error per token, held out",
    ("core", "kl_div_with_sae"): "KL with the SAE, nats",
}
"""What papers print, and labels. No verdicts: these depend on the model or the form of the loss."""
UNRELIABLE = {
    "scr": "SCR separates SAEs of known quality badly, and is noisy (arXiv 2605.18229); with "
    "SAEBench's settings it also ablates padding (docs/evaluation.md)",
}
"""Suites whose verdicts are not to be relied on, and why."""


def check_compared(study: Study) -> None:
    """Refuse metrics under `compare` that there are not, or that have no direction.

    Those of suites that the study does not run are left alone: it may extend one that does.

    Raises:
        StudyError: names the metric.
    """
    suites = [*registry.names(), HELDOUT]
    for name in study.compare:
        suite, _, metric = name.partition("/")
        if suite not in suites:
            raise StudyError(f"compare: no suite {suite!r}: {did_you_mean(suite, suites)}")
        found = described(suite, metric)
        if found is None:
            near = did_you_mean(metric, [row.name for row in _rows(suite)])
            raise StudyError(f"compare: no metric {name!r}: {near}")
        if found.better == "neither":
            raise StudyError(f"compare: {name}: neither higher nor lower is better; leave it out")


def shown(study: Study, results: Mapping[str, Iterable[str]]) -> list[Metric]:
    """The suites' headlines and what is compared, of the metrics that there are by suite."""
    found = []
    for suite, names in {**results, HELDOUT: [row.name for row in OF_THE_RUN]}.items():
        for name in names:
            row = described(suite, name)
            named = f"{suite}/{name}" in study.compare
            if row is None or not (row.headline or named):
                continue
            by_default = not study.compare and suite != HELDOUT and row.better != "neither"
            found.append(
                Metric(
                    suite=suite,
                    name=name,
                    paper=row.paper,
                    meaning=row.meaning,
                    better=row.better,
                    compared=named or by_default,
                    unreliable=UNRELIABLE.get(suite, ""),
                )
            )
    return found


def _rows(suite: str) -> tuple[SuiteMetric, ...]:
    return OF_THE_RUN if suite == HELDOUT else registry.load(suite).metrics


def described(suite: str, name: str) -> SuiteMetric | None:
    """A metric's row in its suite's table, with the number in its name filled in."""
    for row in _rows(suite):
        numbers = row.numbers(name)
        if numbers is not None:
            texts = {part: getattr(row, part) for part in ("paper", "meaning")}
            for number, value in numbers.items():
                texts = {k: text.replace(f"{{{number}}}", value) for k, text in texts.items()}
            return replace(row, **texts)
    return None
