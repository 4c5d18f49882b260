"""Results as CSV: the headlines of every row, and what they are means of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from sae_plugins.base.errors import PluginError
from sae_plugins.base.text import as_csv, format_value, natural
from sae_plugins.eval_suites import registry
from sae_plugins.eval_suites.evaluation.manifest import Row
from sae_plugins.eval_suites.evaluation.results import Result
from sae_plugins.eval_suites.suite import Suite

UNLIKE = 0.15
"""SAEs that differ by this share in L0 are not to be compared."""


def labels(rows: Iterable[Row]) -> dict[str, str]:
    """What to call each SAE, by hash: its name, and a part of the hash where names are alike."""
    names = {row.sae_hash: row.sae for row in rows if row.sae_hash is not None}
    alike = list(names.values())
    return {h: f"{n}-{h[:8]}" if alike.count(n) > 1 else n for h, n in names.items()}


def l0s(found: Iterable[tuple[Row, Result]]) -> dict[str, float]:
    """By hash, each SAE's L0: as a suite measured it, else as the run that trained it did."""
    own: dict[str, float] = {}
    measured: dict[str, list[float]] = {}
    for _, result in found:
        if result.sae.l0 is not None:
            own[result.sae.hash] = result.sae.l0
        if values := known([result], "l0") or known([result], "sae_l0"):
            measured.setdefault(result.sae.hash, []).extend(values)
    return own | {name: statistics.fmean(values) for name, values in measured.items()}


def by_suite(
    found: Iterable[tuple[Row, Result]], named: Sequence[str] = ()
) -> dict[str, dict[str, list[Result]]]:
    """Results by suite and by what each SAE is called, with its L0.

    The SAEs of `named`, their hashes, come first and in this order.
    """
    found = list(found)
    names, l0 = labels(row for row, _ in found), l0s(found)
    place = {name: number for number, name in enumerate(named)}
    found.sort(key=lambda each: place.get(each[1].sae.hash, len(place)))
    suites: dict[str, dict[str, list[Result]]] = {}
    for row, result in found:
        name = result.sae.hash
        label = f"{names[name]}, L0 {l0[name]:.3g}" if name in l0 else names[name]
        suites.setdefault(row.suite, {}).setdefault(label, []).append(result)
    return suites


def unlike(found: Iterable[tuple[Row, Result]]) -> list[str]:
    """Sentences about SAEs whose scores are not to be compared, since they differ in L0."""
    found = list(found)
    names, l0 = labels(row for row, _ in found), l0s(found)
    places: dict[tuple[str | None, str], dict[str, float | None]] = {}
    for _, result in found:
        if result.metrics:
            where = (result.model.name if result.model else None, result.sae.hook_name)
            places.setdefault(where, {})[names[result.sae.hash]] = l0.get(result.sae.hash)
    said = []
    for saes in places.values():
        given = {name: value for name, value in saes.items() if value is not None}
        if len(saes) > 1 and len(given) < len(saes):
            unknown = ", ".join(name for name in saes if name not in given)
            said.append(f"the L0 of {unknown} is not known; add --suite core, which measures it")
        if given and max(given.values()) > (1 + UNLIKE) * min(given.values()):
            said.append(
                f"L0 differs by more than {UNLIKE:.0%}, and most scores follow it, so these tell "
                "nothing of which SAE is better: "
                + ", ".join(f"{name} {value:.3g}" for name, value in given.items())
                + "; sae-plugins study compares at equal L0"
            )
    return said


def headlines(suite: Suite, result: Result) -> list[tuple[str, Any]]:
    """The suite's headline metrics that a result has, each with its `Metric`, in their order."""
    found = []
    for metric in suite.metrics:
        names = [name for name in result.metrics if metric.numbers(name) is not None]
        found += [(name, metric) for name in sorted(names, key=natural) if metric.headline]
    return found


def headline_names(result: Result) -> list[str]:
    """Of all metrics where the suite is not installed any more."""
    try:
        return [name for name, _ in headlines(registry.load(result.suite), result)]
    except PluginError:
        return list(result.metrics)


def known(results: Iterable[Result], metric: str) -> list[float]:
    """A metric's values in results, such as those of several seeds, where it is defined."""
    values = (result.metrics[metric].value for result in results if metric in result.metrics)
    return [value for value in values if value is not None]


def cell(results: Iterable[Result], metric: str) -> str:
    """A metric of one SAE: its mean ± sd over seeds."""
    values = known(results, metric)
    if len(values) < 2:
        return format_value(values[0] if values else None)
    return f"{format_value(statistics.fmean(values))} ± {statistics.stdev(values):.2g}"


def results_table(results: Sequence[tuple[Row, Result]]) -> str:
    names, l0 = labels(row for row, _ in results), l0s(results)
    rows = []
    for row, result in results:
        for metric in sorted(headline_names(result), key=natural):
            value = result.metrics[metric]
            rows.append({
                "suite": row.suite, "sae": names[result.sae.hash], "seed": row.seed,
                "metric": metric, "value": value.value, "l0": l0.get(result.sae.hash),
                "n": value.n, "std": value.std,
                "status": result.status, "sae_hash": result.sae.hash, "preset": result.preset,
                "settings": row.settings,
                "architecture": result.sae.architecture, "d_in": result.sae.d_in,
                "d_sae": result.sae.d_sae, "hook_name": result.sae.hook_name,
                "model": result.model.name if result.model else None,
                "seconds": result.seconds, "cpu_seconds": result.cpu_seconds,
            })  # fmt: skip
    return as_csv(RESULT_COLUMNS, rows)


RESULT_COLUMNS = (
    *("suite", "sae", "seed", "metric", "value", "n", "std", "status", "sae_hash", "preset"),
    "settings",
    "l0",
    *("architecture", "d_in", "d_sae", "hook_name", "model", "seconds", "cpu_seconds"),
)
DETAIL_COLUMNS = ("suite", "sae", "seed", "item", "metric", "value", "settings")


def details_table(results: Sequence[tuple[Row, Result]]) -> str:
    names = labels(row for row, _ in results)
    rows = [
        {"suite": row.suite, "sae": names[result.sae.hash], "seed": row.seed, "item": item,
         "metric": metric, "value": value, "settings": row.settings}
        for row, result in results
        for item in sorted(result.details, key=natural)
        for metric, value in sorted(result.details[item].items())
    ]  # fmt: skip
    return as_csv(DETAIL_COLUMNS, rows)
