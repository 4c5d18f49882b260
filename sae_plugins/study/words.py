"""A study's numbers in words, and its tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import scipy.stats
from markupsafe import Markup

from sae_plugins.base.text import as_markdown
from sae_plugins.study.by_l0 import AtL0
from sae_plugins.study.statistics import CONFIDENCE, Comparison, Verdict

DECIDED: tuple[Verdict, ...] = ("better", "worse")
MARKS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "equivalent": "≈"}
"""What tells verdicts apart where there is no colour."""


@dataclass(frozen=True)
class Table:
    """A plain table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def _decimals(scale: float) -> int:
    """Decimals that show three significant digits of a number as large as `scale`."""
    return max(0, 2 - math.floor(math.log10(scale))) if scale > 0 else 0


def number(value: float | None, sign: str = "") -> str:
    """Three significant digits, and thousands separators."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value and not 1e-4 <= abs(value) < 1e9:
        return f"{value:{sign}.2e}"
    return f"{value:{sign},.{_decimals(abs(value))}f}"


def marked(comparison: Comparison) -> str:
    """The verdict, with its mark."""
    return f"{MARKS.get(comparison.verdict, '')} {comparison.verdict}".strip()


def limits(comparison: Comparison) -> str:
    """How a verdict stands to the margin, and what it leaves open; empty where nothing is."""
    margin, detects = comparison.margin, comparison.smallest_detectable
    if comparison.verdict == "equivalent":
        return f"within ±{margin:g}"
    if comparison.verdict in DECIDED:
        return f"< margin {margin:g}" if comparison.is_small else ""
    if comparison.verdict not in ("not distinguishable", "underpowered") or detects is None:
        return ""
    return f"detects ≥ {number(detects)}" + ("" if margin is None else f", margin {margin:g}")


def difference(found: Comparison | AtL0) -> str:
    """The difference and its interval, with signs and alike in decimals."""
    if found.difference is None:
        return ""
    if found.interval is None:
        return number(found.difference, "+")
    shown = [found.difference, *found.interval]
    scale = max(map(abs, shown))
    if scale and not 1e-4 <= scale < 1e9:
        middle, low, high = (number(value, "+") for value in shown)
    else:
        middle, low, high = (f"{value:+,.{_decimals(scale)}f}" for value in shown)
    return f"{middle} [{low}, {high}]"


def mean_interval(values: Sequence[float]) -> str:
    """Mean and half width of its 95% t interval."""
    if len(values) < 2:
        return number(values[0] if values else None)
    half = float(scipy.stats.t.isf((1 - CONFIDENCE) / 2, len(values) - 1) * scipy.stats.sem(values))
    if not half:
        return number(fmean(values))
    decimals = max(_decimals(abs(fmean(values))), min(_decimals(half) - 1, 4))
    return f"{fmean(values):,.{decimals}f} ± {half:,.{decimals}f}"


def p(value: float | None) -> str:
    """A p value."""
    if value is None:
        return "n/a"
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def differing(found: Mapping[str, Sequence[str]]) -> str:
    """What has several values, with these, such as "torch 2.5 and 2.6, threads 1 and 2"."""
    return ", ".join(f"{name} {' and '.join(of)}" for name, of in found.items() if of[1:])


def span(l0: tuple[float, float] | None) -> str:
    """A range of L0."""
    if l0 is None:
        return "n/a"
    low, high = map(number, l0)
    return low if low == high else f"{low} to {high}"


def grid(table: Table) -> Markup:
    """A table in Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return Markup("\n".join("| " + " | ".join(map(as_markdown, row)) + " |" for row in rows))
