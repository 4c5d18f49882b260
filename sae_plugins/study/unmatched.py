"""The test that papers make, shown as what it is: SAEs of different L0, paired by their seeds.

It asks whether the scores of two SAEs differ, and almost every score follows L0. So it says that
the SAEs differ, and not that the method is better. Nothing is corrected for how many metrics are
tested. What is left of each difference between the same two arms at equal L0 stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import scipy.stats

from sae_plugins.study.facts import Facts
from sae_plugins.study.findings import ReportedMetric, Trained
from sae_plugins.study.metrics import least_seeds
from sae_plugins.study.power import ALPHA
from sae_plugins.study.spec import Unmatched
from sae_plugins.study.statistics import Comparison, compare
from sae_plugins.study.words import Table, difference, marked, mean_interval, number, p

COLUMNS = (
    *("metric", "arm", "its L0", "its score", "against", "its L0", "its score"),
    *("seeds", "difference", "p of the paired t test", "at p < 0.05"),
    *("at equal L0 [95% interval]", "Holm p", "verdict at equal L0"),
)


def paired_p(
    one: Mapping[int, float], other: Mapping[int, float], least_seeds: int = 2
) -> float | None:
    """p of the two-sided paired t test over the seeds that both have; None without a test."""
    values = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if len(values) < least_seeds or min(values) == max(values):
        return None
    return float(scipy.stats.ttest_1samp(values, 0).pvalue)


def table(facts: Facts, model: str) -> Table | None:
    """Each test that the study names, on each compared metric of a model, with what it leaves out.

    None if the study names no test, or no SAE of one is there.
    """
    metrics = facts.compared(model)
    rows = []
    for arm, test in facts.findings.study.unmatched.items():
        ends = zip((arm, test.against), test.l0, strict=True)
        pair = [_nearest(facts, model, name, l0, test.seeds) for name, l0 in ends]
        if not all(pair):
            continue
        matched = _at_equal_l0(facts, model, arm, test, metrics)
        rows += [
            _row(facts, model, metric, arm, test, pair, found)
            for metric, found in zip(metrics, matched, strict=True)
        ]
    return Table(model, COLUMNS, rows) if rows else None


def _nearest(facts: Facts, model: str, arm: str, l0: float, seeds: Sequence[int]) -> list[Trained]:
    """An arm's SAEs, one for each of these seeds or of all, at the sparsity whose L0 is nearest."""
    means = {
        sparsity: fmean(known)
        for sparsity, runs in facts.runs.get((model, arm), {}).items()
        if (known := [run.l0 for run in runs if run.l0])
    }
    if not means:
        return []
    sparsity = min(means, key=lambda each: abs(math.log(means[each] / l0)))
    runs = facts.runs[model, arm][sparsity]
    return [run for run in runs if run.l0 and (not seeds or run.seed in seeds)]


def _at_equal_l0(
    facts: Facts, model: str, arm: str, test: Unmatched, metrics: Sequence[ReportedMetric]
) -> list[Comparison]:
    """What the arms differ by at equal L0, on each metric; one Holm family."""
    questions = {
        place: facts.points.question(model, metric, arm, test.against)
        for place, metric in enumerate(metrics)
    }
    return [*compare(questions).values()]


def _row(
    facts: Facts,
    model: str,
    metric: ReportedMetric,
    arm: str,
    test: Unmatched,
    pair: Sequence[Sequence[Trained]],
    matched: Comparison,
) -> tuple[str, ...]:
    cells, scores = [], []
    for name, runs in zip((arm, test.against), pair, strict=True):
        values = facts.samples.get((model, name, metric.suite, metric.name), {})
        by_seed = values.get(runs[0].sparsity, {})
        scores.append({run.seed: by_seed[run.seed] for run in runs if run.seed in by_seed})
        l0s = [run.l0 for run in runs if run.l0]
        cells += [name, number(fmean(l0s)), mean_interval([*scores[-1].values()])]
    one, other = scores
    common = sorted(one.keys() & other.keys())
    gap = fmean(one[seed] - other[seed] for seed in common) if common else None
    found = paired_p(one, other, least_seeds(metric.suite))
    return (
        f"{facts.label(model, metric)} ({metric.suite})",
        *cells,
        ", ".join(map(str, common)),
        number(gap, "+"),
        p(found),
        _claim(gap, found, metric),
        difference(matched),
        p(matched.p_holm),
        marked(matched),
    )


def _claim(gap: float | None, found: float | None, metric: ReportedMetric) -> str:
    """What a reader of the uncorrected p value alone would say."""
    if gap is None or found is None:
        return "no test"
    if found >= ALPHA:
        return "no difference"
    return "better" if (gap > 0) == (metric.better == "higher") else "worse"
