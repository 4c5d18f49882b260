"""Figures of an evaluation: functions from results to matplotlib figures, without global state."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import binomtest

from sae_plugins.base.plots import COLOURS, GREY, INK, save, style
from sae_plugins.eval_suites.evaluation.results import Result
from sae_plugins.eval_suites.evaluation.tables import known

Labelled = Mapping[str, Sequence[Result]]
"""The results of one suite by what the SAE is called, with its L0; one per seed."""

SHARES = {
    "explained_variance_centred": "explained variance",
    "ce_loss_score": "CE loss recovered",
    "kl_div_score": "KL divergence recovered",
}
_LETTERS_PER_INCH = 12
"""Of a legend."""


def save_all(results: Mapping[str, Labelled], folder: Path) -> list[Path]:
    """Draw what there are results for, by suite; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for suite, name, draw in DRAWN:
        figure = draw(results.get(suite, {}))
        if figure is not None:
            files.append(folder / f"{name}.png")
            save(figure, files[-1])
    return files


def core_overview(saes: Labelled) -> Figure | None:
    """Bars of what each SAE keeps of the activations and of the language model."""
    saes = {label: found for label, found in saes.items() if any(known(found, m) for m in SHARES)}
    if not saes:
        return None
    figure = Figure(figsize=(8.4, 1.7 + 0.62 * len(saes)), layout="constrained")
    panel = figure.subplots()
    width, lowest = 0.8 / len(SHARES), 0.0
    for place, (metric, title) in enumerate(SHARES.items()):
        values = [known(found, metric) for found in saes.values()]
        means, spreads = [_mean(each) for each in values], [_spread(each) for each in values]
        lowest = float(np.nanmin([lowest, *means]))
        panel.barh(
            np.arange(len(saes)) + (place - 1) * width, means, 0.92 * width, label=title,
            color=COLOURS[place], xerr=spreads if np.nansum(spreads) else None, ecolor=INK,
            capsize=2,
        )  # fmt: skip
    panel.set_yticks(range(len(saes)), [name.replace(", L0 ", "\nL0 ") for name in saes])
    panel.invert_yaxis()  # the first on top
    panel.set_xlim(max(-1.0, 1.1 * lowest), 1.02)
    panel.set_xlabel("share that the SAE keeps (1 is perfect)")
    _title(panel, "Reconstruction", saes)
    style(panel, grid="x")
    panel.margins(y=0.03)
    _legend(figure, list(SHARES.values()), panel)
    return figure


def absorption_by_letter(saes: Labelled) -> Figure | None:
    """Bars of the full absorption rate by first letter, a colour per SAE.

    Each has the 95 % interval that its number of words leaves, and a dotted line is at the SAE's
    mean: a letter whose interval leaves that out differs by more than chance.
    """
    saes = {label: found for label, found in saes.items() if any(r.details for r in found)}
    letters = sorted({item for found in saes.values() for r in found for item in r.details})
    if not letters:
        return None
    figure = Figure(figsize=(max(8.0, 2 + 0.035 * len(letters) * (7 + len(saes))), 4.4))
    figure.set_layout_engine("constrained")
    panel = figure.subplots()
    width = 0.84 / len(saes)
    highest = 0.0
    for place, (label, found) in enumerate(saes.items()):
        of_letters = [[r.details.get(letter, {}) for r in found] for letter in letters]
        rates = [_mean(_defined(each, "full_absorption_rate")) for each in of_letters]
        ends = np.array([_interval(each) for each in of_letters]).T
        highest = max(highest, float(np.nanmax([0.0, *rates, *ends[1]])))
        offset = (place - (len(saes) - 1) / 2) * width
        colour = _colour(place, len(saes))
        panel.bar(
            np.arange(len(letters)) + offset, rates, 0.94 * width, label=label, color=colour,
            yerr=np.abs(ends - rates), ecolor=INK, error_kw={"linewidth": 0.8},
        )  # fmt: skip
        panel.axhline(float(np.nanmean(rates)), color=colour, linestyle=":", linewidth=1.4)
    panel.set_xticks(range(len(letters)), letters)
    panel.set_xlim(-0.7, len(letters) - 0.3)
    panel.set_ylim(0, min(1.0, 1.1 * highest) or 1.0)
    panel.set_xlabel(
        "first letter (those that the language model's own probe knows); dotted: mean of letters\n"
        "an interval that leaves out the dotted line differs from it by more than chance"
    )
    panel.set_ylabel("full absorption rate\n(share of words; lower is better)")
    _title(panel, "Feature absorption by first letter", saes)
    style(panel, grid="y")
    _legend(figure, list(saes), panel)
    return figure


def scr_by_ablations(saes: Labelled) -> Figure | None:
    """Lines of the SCR score over the number of ablated latents."""
    return _lines(
        saes, r"scr_metric_threshold_(\d+)", "ablated latents (log scale)",
        "SCR score: share of the lost accuracy\nthat comes back (higher is better)",
        "Spurious correlation removal",
    )  # fmt: skip


def tpp_by_ablations(saes: Labelled) -> Figure | None:
    """Lines of the TPP score over the number of ablated latents."""
    return _lines(
        saes, r"tpp_threshold_(\d+)_total_metric", "ablated latents of a class (log scale)",
        "TPP score: accuracy that the class's probe loses,\nless what others lose "
        "(higher is better)",
        "Targeted probe perturbation",
    )  # fmt: skip


def probing_by_k(saes: Labelled, title: str = "Sparse probing") -> Figure | None:
    """Lines of the accuracy of k-sparse probes over k, the language model's own dashed."""
    figure = _lines(
        saes, r"sae_top_(\d+)_test_accuracy", "k: inputs of the probe (log scale)",
        "test accuracy, mean over datasets", title,
    )  # fmt: skip
    if figure is None:
        return None
    panel = figure.axes[0]
    everything = [result for found in saes.values() for result in found]
    points = _points(everything, r"llm_top_(\d+)_test_accuracy")
    if points:
        panel.plot(
            list(points), [_mean(values) for values in points.values()], "--", color=INK,
            linewidth=1.6, label="language model's own channels",
        )  # fmt: skip
    full = _mean(known(everything, "llm_test_accuracy"))
    if not np.isnan(full):
        panel.axhline(
            full, color=GREY, linestyle=":", linewidth=1.4, label="language model, all channels"
        )
    _legend(figure, [str(label) for label in panel.get_legend_handles_labels()[1]], panel)
    return figure


def sae_probes_by_k(saes: Labelled) -> Figure | None:
    """The same on the datasets of sae-probes."""
    return probing_by_k(saes, "Sparse probing on the datasets of sae-probes")


DRAWN: tuple[tuple[str, str, Callable[[Labelled], Figure | None]], ...] = (
    ("core", "core", core_overview),
    ("absorption", "absorption_by_letter", absorption_by_letter),
    ("scr", "scr_by_ablated_latents", scr_by_ablations),
    ("tpp", "tpp_by_ablated_latents", tpp_by_ablations),
    ("sparse-probing", "sparse_probing_by_k", probing_by_k),
    ("sae-probes", "sae_probes_by_k", sae_probes_by_k),
)
"""Suite, file and function of each figure."""


def _lines(saes: Labelled, pattern: str, x: str, y: str, title: str) -> Figure | None:
    """A line per SAE over the number in its metrics' names; a band of ±1 sd where seeds differ."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    panel = figure.subplots()
    ticks: set[int] = set()
    for place, (label, found) in enumerate(saes.items()):
        points = _points(found, pattern)
        if not points:
            continue
        ticks |= set(points)
        colour = _colour(place, len(saes))
        mean = np.array([_mean(values) for values in points.values()])
        spread = np.array([_spread(values) for values in points.values()])
        panel.plot(
            list(points), mean, color=colour, linewidth=1.6, marker="o", markersize=4, label=label
        )
        if spread.any():
            panel.fill_between(
                list(points), mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0
            )
    if not ticks:
        return None
    panel.set_xscale("log")
    panel.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    panel.xaxis.set_minor_locator(NullLocator())
    if panel.get_ylim()[0] < 0:
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=0.5)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    _title(panel, title, saes)
    style(panel, grid="both")
    _legend(figure, list(saes), panel)
    return figure


def _points(results: Sequence[Result], pattern: str) -> dict[int, list[float]]:
    """Values over seeds by the number that `pattern` finds in a metric's name."""
    points: dict[int, list[float]] = {}
    for result in results:
        for name, metric in result.metrics.items():
            match = re.fullmatch(pattern, name)
            if match and metric.value is not None:
                points.setdefault(int(match.group(1)), []).append(metric.value)
    return dict(sorted(points.items()))


def _defined(rows: Sequence[Mapping[str, float | None]], name: str) -> list[float]:
    values = (row.get(name) for row in rows)
    return [value for value in values if value is not None]


def _interval(rows: Sequence[Mapping[str, float | None]]) -> tuple[float, float]:
    """Wilson's 95 % interval for a rate over the words of one letter, of all seeds."""
    absorbed, words = (
        round(sum(_defined(rows, name)))
        for name in ("num_full_absorption", "num_probe_true_positives")
    )
    if not words:
        return (math.nan, math.nan)
    ends = binomtest(min(absorbed, words), words).proportion_ci(method="wilson")
    return (float(ends.low), float(ends.high))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _colour(place: int, count: int) -> str | tuple[float, ...]:
    if count <= len(COLOURS):
        return COLOURS[place]
    return colormaps["turbo"](0.05 + 0.9 * place / (count - 1))


def _title(panel: Axes, text: str, saes: Labelled) -> None:
    seeds = max(len(found) for found in saes.values())
    note = f" (mean and sd of {seeds} seeds)" if seeds > 1 else ""
    panel.set_title(text + note, fontsize=12, color=INK, loc="left")


def _legend(figure: Figure, names: Sequence[str], panel: Axes) -> None:
    """A legend below the panel, where it covers no data; replaces an earlier one."""
    for old in figure.legends:
        old.remove()
    letters = int(_LETTERS_PER_INCH * figure.get_figwidth())
    columns = max(1, min(len(names), letters // (6 + max(map(len, names)))))
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", ncols=columns,
        frameon=False, fontsize=10,
    )  # fmt: skip
