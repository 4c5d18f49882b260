"""Figures of a training run: functions from data to matplotlib figures, without global state.

Matplotlib is loaded when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_plugins.base.plots import BLUE, COLOURS, GREY, INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANGES = "changes/"
"""Prefix of the columns that say which feature changes a step made."""

_DRAWN = {"losses", "metrics", "sparsity", "details", CHANGES.rstrip("/")}
"""Groups of metrics that SAELens logs, or that `loss_and_l0` draws."""

HEADING = {"step", "samples", "updates", "seconds"}
"""What every row begins with."""
_PANELS = 24
"""Of a figure."""

LOG_FROM_RATIO = 20.0
"""Positive data that spans more than this factor is drawn on a log axis."""


@dataclass(frozen=True)
class Snapshot:
    """Firing frequency by feature position at one time of the training.

    Attributes:
        label: what to call it.
        step: the training step (batch) at which it was taken, counted from 1.
        tokens: tokens over which frequencies were counted, the last ones up to `step`.
        frequency: [d_sae], the share of those tokens on which the feature at each position fired.
    """

    label: str
    step: int
    tokens: int
    frequency: NDArray[np.float64]


def loss_and_l0(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss and its terms, L0 and explained variance over training steps, by `metrics.jsonl`.

    Steps with a column under `CHANGES` are marked by vertical lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    loss, l0, variance = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    _losses(loss, rows)
    steps, values = _series(rows, "metrics/l0")
    l0.plot(steps, values, color=BLUE, linewidth=1.4, marker=_marker(steps))
    log = _scale(l0, values)
    l0.set_ylabel("L0: active features\nper token" + (" (log scale)" if log else ""))
    steps, values = _series(rows, "metrics/explained_variance")
    variance.plot(steps, values, color=BLUE, linewidth=1.4, marker=_marker(steps))
    if values.size:
        # cut off the first steps, which can be far below zero, but never the last
        lowest = max(np.quantile(values, 0.02), min(0.0, values[-1]))
        variance.set_ylim(lowest - 0.05, 1.02)
    variance.yaxis.set_major_formatter("{x:.0%}")
    variance.set_ylabel("explained variance\nof the batch")
    variance.set_xlabel("training step")
    _count_axis(variance, max((row["step"] for row in rows), default=1), ticks=10)
    changed = [row["step"] for row in rows if any(name.startswith(CHANGES) for name in row)]
    for panel in (loss, l0, variance):
        for place, step in enumerate(changed):
            panel.axvline(
                step,
                color=GREY,
                linewidth=0.8,
                alpha=max(0.15, min(0.7, 20 / len(changed))),
                zorder=0.5,
                label="features changed" if place == 0 else None,
            )
        style(panel, grid="y")
    labels = loss.get_legend_handles_labels()[1]
    if labels:
        # above the panel, where it covers no data
        loss.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=6 if len("".join(labels)) < 70 else 3,
            frameon=False, fontsize=10, borderaxespad=0.2, handlelength=1.6,
        )  # fmt: skip
        for text in loss.get_legend().get_texts():
            text.set_parse_math(False)
    figure.align_ylabels()
    return figure


def firing_by_position(snapshots: Sequence[Snapshot], d_sae: int) -> Figure:
    """Firing frequency by feature position, one panel per snapshot, from left to right."""
    from matplotlib.figure import Figure

    count = max(1, len(snapshots))
    figure = Figure(figsize=(1.2 + 3.6 * max(2, count), 4.4), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    seen = [shot.frequency[shot.frequency > 0] for shot in snapshots]
    floor = min((values.min() for values in seen if values.size), default=1e-5) / 3
    for panel, shot in zip(panels, snapshots, strict=False):
        _firing(panel, shot, floor)
    for panel in panels:
        panel.set_yscale("log")
        panel.set_ylim(floor / 1.8, 1.5)  # silent features are drawn at the floor
        panel.set_xlabel("feature position")
        _count_axis(panel, d_sae, ticks=5)
        style(panel, grid="both")
    panels[0].set_ylabel("firing frequency\n(share of tokens, log scale)")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10,
            markerscale=2.5,
        )  # fmt: skip
    return figure


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names of metrics by what precedes their "/", of groups that are not SAELens' own.

    Those without a group are in `other`.
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        group, slash, _ = name.partition("/")
        if name not in HEADING and not (slash and group in _DRAWN):
            found.setdefault((slash and group) or "other", []).append(name)
    return found


def of_group(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], meanings: Mapping[str, str]
) -> Figure:
    """Metrics of one group over training steps, a panel each.

    Args:
        rows: of `metrics.jsonl`.
        names: the group's metrics, as `groups` has them.
        meanings: a phrase for metrics that have one, by what follows the group's "/".
    """
    from matplotlib.figure import Figure

    left_out = len(names) - _PANELS
    names = names[:_PANELS]
    columns = min(2, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(5.2 * columns, 0.5 + 2.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
    last = max((row["step"] for row in rows), default=1)
    for panel, name in zip(panels, names, strict=False):
        steps, values = _series(rows, name)
        panel.plot(steps, values, color=BLUE, linewidth=1.2, marker="." if steps.size < 40 else "")
        log = bool((values > 0).all()) and _scale(panel, values)  # where a zero would not be seen
        called = name.partition("/")[2] or name
        title = f"{called}{' (log scale)' if log else ''}"
        lines_of_title = [*wrap(title, 58)[:2], *wrap(meanings.get(called, ""), 58)]
        panel.set_title("\n".join(lines_of_title), fontsize=9, parse_math=False)
        _count_axis(panel, last, ticks=5)
        style(panel, grid="y")
    if left_out > 0:
        figure.suptitle(f"{left_out:,} more are in metrics.jsonl", fontsize=9)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(names) - columns) : len(names)]:
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("training step")
    return figure


def _losses(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    total = "losses/overall_loss"
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("losses/"))
    drawn = []
    for place, name in enumerate(name for name in names if name != total):
        steps, values = _series(rows, name)
        if values.any():
            style = "-" if place < len(COLOURS) else "--"
            label = name.removeprefix("losses/")
            colour = COLOURS[place % len(COLOURS)]
            panel.plot(
                steps, values, style, color=colour, linewidth=1.2, label=label,
                marker=_marker(steps),
            )  # fmt: skip
            drawn.append(values)
    steps, values = _series(rows, total)
    if values.size:
        # dotted, so that a term that makes up nearly all of it still shows
        panel.plot(steps, values, ":", color=INK, linewidth=2, label="total", marker=_marker(steps))
        drawn.append(values)
    log = _scale(panel, np.concatenate(drawn) if drawn else np.empty(0))
    panel.set_ylabel("loss, mean over tokens" + ("\n(log scale)" if log else ""))


def _firing(panel: Axes, shot: Snapshot, floor: float) -> None:
    positions = np.arange(len(shot.frequency))
    fires = shot.frequency > 0
    size = float(np.clip(6000 / len(positions), 1.0, 12.0))
    panel.scatter(
        positions[fires], shot.frequency[fires], s=size, color=COLOURS[5], linewidths=0,
        alpha=0.7, rasterized=True, label="one feature",
    )  # fmt: skip
    never = int((~fires).sum())
    panel.scatter(
        positions[~fires], np.full(never, floor), s=24, marker="|", color=COLOURS[1],
        linewidths=0.8, label="silent (at the foot)",
    )  # fmt: skip
    # medians over neighbours show the order that single features scatter around
    groups = list(np.array_split(positions, max(1, min(40, len(positions) // 8))))
    medians = [max(float(np.median(shot.frequency[group])), floor) for group in groups]
    panel.plot(
        [group.mean() for group in groups], medians, color=INK, linewidth=1.6,
        label=f"median of {len(groups[0]):,} neighbours",
    )  # fmt: skip
    panel.set_title(
        f"{shot.label}: step {shot.step:,}\n{never:,} of {len(positions):,} silent in "
        f"{shot.tokens:,} tokens",
        fontsize=10,
        color=INK,
    )


def _series(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps [n] and values [n] of the rows that have a number for `name`."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


def _marker(steps: NDArray[np.float64]) -> str:
    """Dots where there are too few points for a line."""
    return "." if steps.size < 3 else ""


def _count_axis(panel: Axes, last: int, ticks: int) -> None:
    """An x axis of whole numbers from 0 to a little beyond `last`."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlim(-0.02 * last, 1.02 * last)
    panel.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))
    panel.xaxis.set_major_formatter("{x:,.0f}")


def _scale(panel: Axes, values: NDArray[np.float64]) -> bool:
    """Choose a log axis for data of one sign that spans orders of magnitude; say if it is one."""
    positive = values[values > 0]
    log = bool(
        positive.size
        and not (values < 0).any()
        and positive.max() > LOG_FROM_RATIO * positive.min()
    )
    if log:
        panel.set_yscale("log", nonpositive="mask")
    elif values.size and not (values < 0).any():
        panel.set_ylim(bottom=0)
    return log
