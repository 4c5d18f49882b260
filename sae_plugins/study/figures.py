"""Figures of a study's report: what they show, once, and its drawing with plotly and matplotlib."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from sae_plugins.base.plots import COLOURS, GREY, INK, style

_STYLES: tuple[tuple[tuple[int, ...], str, str], ...] = (
    ((), "circle", "o"),
    ((7, 4), "square", "s"),
    ((2, 3), "diamond", "D"),
    ((8, 3, 2, 3), "triangle-up", "^"),
    ((14, 4), "cross", "P"),
)
"""Dashes, and a marker by its names in plotly and matplotlib."""
_BAND = 0.12
"""Opacity of an interval."""
_FAINT = "rgba(128,128,128,0.25)"
_DIGITS = 5
"""Significant, of the numbers in a page: more than a screen shows."""
_DECADE = 8.0
"""A log axis over more than this factor has ticks at 1, 2 and 5; else at even steps."""
_LEGEND_LETTERS_PER_INCH = 9
_TITLE_LETTERS, _TICK_LETTERS = 42, 28
_FEW_COLUMNS = 12
"""Of a heatmap: so many leave room for numbers in the cells."""


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, the same in all figures."""

    colour: str
    dashes: tuple[int, ...]
    """Lengths of strokes and gaps; empty for a solid line."""
    symbol: str
    """Of plotly."""
    marker: str
    """Of matplotlib."""
    width: float


@dataclass(frozen=True)
class Line:
    """An arm's part of a panel."""

    arm: str
    x: Sequence[float] = ()
    y: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """The ends of the interval at each x; empty if there is none."""
    dots: Sequence[tuple[float, float]] = ()
    """x and y of single observations."""


@dataclass(frozen=True)
class Panel:
    """Lines of several arms on common axes."""

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    steps: bool = False
    """Draw a line as a histogram's outline."""
    y_axis: tuple[float, float] | None = None
    """Where it ends, if some arm is beyond."""
    beyond: str = ""
    """Which arms are, in words."""


@dataclass(frozen=True)
class Heatmap:
    """A value for each row and column."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """A look for each arm: grey for the reference, which comes first, then colours, then dashes."""
    reference, *others = arms
    found = {reference: Look(GREY, (), "circle", "o", 3.0)}
    for place, arm in enumerate(others):
        style = _STYLES[place // len(COLOURS) % len(_STYLES)]
        found[arm] = Look(COLOURS[place % len(COLOURS)], *style, 2.0)
    return found


# -- plotly --------------------------------------------------------------------------------------


def plotly_json(shown: Panel | Heatmap, looks: Mapping[str, Look]) -> str:
    """A figure as plotly.js reads it, fit to stand inside a page's script element.

    A trace's `meta` is its arm, by which the page shows and hides it; a panel of one arm has none.
    """
    if isinstance(shown, Heatmap):
        data, layout = _plotly_heatmap(shown)
    else:
        data = [trace for line in shown.lines for trace in _traces(line, shown, looks[line.arm])]
        layout = {
            "xaxis": _axis(shown.x_title, shown.log_x, [x for x, _ in _extent(shown.lines)]),
            "yaxis": _axis(shown.y_title, shown.log_y, [y for _, y in _extent(shown.lines)])
            | ({} if shown.y_axis is None else {"range": [*shown.y_axis]}),
            "margin": {"l": 62, "r": 12, "t": 12, "b": 46},
            "height": 300,
        }
    return page_json(data, layout)


def page_json(data: Sequence[Mapping[str, object]], layout: Mapping[str, object]) -> str:
    """Traces and a layout as plotly.js reads them, in the look of the page."""
    from plotly.graph_objects import Figure as PlotlyFigure
    from plotly.io import to_json

    layout = {
        **layout,
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "showlegend": False,
        "hovermode": "closest",
    }
    text: str = to_json(PlotlyFigure(data=data, layout=layout), validate=False)
    return text


def _traces(line: Line, panel: Panel, look: Look) -> list[dict[str, object]]:
    name = html.escape(line.arm)
    common: dict[str, object] = {"type": "scatter", "name": name}
    if len({other.arm for other in panel.lines}) > 1:
        common["meta"] = line.arm
    traces: list[dict[str, object]] = []
    if len(line.low):
        traces.append({
            **common, "x": _short([*line.x, *reversed(line.x)]),
            "y": _short([*line.high, *reversed(line.low)]), "mode": "lines", "fill": "toself",
            "fillcolor": look.colour, "opacity": _BAND, "line": {"width": 0}, "hoverinfo": "skip",
        })  # fmt: skip
    if len(line.x):
        traces.append({
            **common, "x": _short(line.x), "y": _short(line.y),
            # a line of one point could not be seen
            "mode": "lines" if len(line.x) > 1 else "markers",
            "marker": {"color": look.colour, "symbol": look.symbol, "size": 10},
            "line": {"color": look.colour, "width": look.width, "dash": _dash(look),
                     "shape": "hvh" if panel.steps else "linear"},
        })  # fmt: skip
    if line.dots:
        x, y = zip(*line.dots, strict=True)
        traces.append({
            **common, "x": _short(x), "y": _short(y), "mode": "markers",
            "opacity": _opacity(len(line.dots)),
            "marker": {"color": look.colour, "symbol": look.symbol, "size": _size(len(line.dots))},
        })  # fmt: skip
    return traces


def _dash(look: Look) -> str:
    return ",".join(f"{length}px" for length in look.dashes) or "solid"


def _plotly_heatmap(shown: Heatmap) -> tuple[list[dict[str, object]], dict[str, object]]:
    rows, columns = [[html.escape(name) for name in names] for names in (shown.rows, shown.columns)]
    data: list[dict[str, object]] = [{
        "type": "heatmap", "x": columns, "y": rows, "xgap": 1, "ygap": 1,
        "z": [_short(row) for row in shown.values], "colorscale": "Cividis",
        "hovertemplate": "%{y}<br>%{x}: %{z:.3g}<extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "texttemplate": "%{z:.2g}" if len(columns) <= _FEW_COLUMNS else "",
    }]  # fmt: skip
    axis = {"showgrid": False, "zeroline": False, "type": "category", "automargin": True}
    return data, {
        "xaxis": {**axis, "side": "bottom"},
        "yaxis": {**axis, "autorange": "reversed"},
        "height": 110 + 24 * len(rows),
        "margin": {"l": 20, "r": 10, "t": 12, "b": 20},
    }


def _axis(title: str, log: bool, values: Sequence[float]) -> dict[str, object]:
    axis: dict[str, object] = {
        "title": {"text": html.escape(title), "standoff": 8}, "gridcolor": _FAINT,
        "zeroline": False, "automargin": True, "nticks": 6,
    }  # fmt: skip
    if log:
        ticks = _ticks(values)
        axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return axis


def _short(values: Iterable[float | None]) -> list[float | None]:
    return [
        None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")
        for value in values
    ]


def width(shown: Panel | Heatmap) -> int:
    """In pixels, what a figure needs to be readable."""
    if isinstance(shown, Panel):
        return 0
    return 110 + 7 * max(map(len, shown.rows)) + _cell(shown) * len(shown.columns)


def _cell(shown: Heatmap) -> int:
    """A cell's width in pixels, with a number in it if there are few of them."""
    return 40 if len(shown.columns) <= _FEW_COLUMNS else 18


# -- matplotlib ----------------------------------------------------------------------------------


def draw_panels(panels: Sequence[Panel], looks: Mapping[str, Look]) -> Figure:
    """Panels side by side, with one legend below, in the order of `looks`."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = 4.2 * max(2, columns)
    shown = [arm for arm in looks if any(line.arm == arm for p in panels for line in p.lines)]
    per_row = max(1, int(width * _LEGEND_LETTERS_PER_INCH / (7 + max(map(len, shown), default=1))))
    legend_rows = math.ceil(len(shown) / per_row)
    figure = Figure(figsize=(width, 3.3 * rows + 0.22 * legend_rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, looks)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles = [
        Line2D(
            [], [], color=looks[arm].colour, linestyle=_linestyle(looks[arm]), label=arm,
            marker=looks[arm].marker, linewidth=looks[arm].width * 0.8, markersize=5,
        )
        for arm in shown
    ]  # fmt: skip
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=per_row, frameon=False, fontsize=10
        )
    return figure


def _draw_panel(axis: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    for line in panel.lines:
        look = looks[line.arm]
        if len(line.low):
            axis.fill_between(
                line.x, line.low, line.high, color=look.colour, alpha=_BAND, linewidth=0
            )
        axis.plot(
            line.x, line.y, color=look.colour, linestyle=_linestyle(look),
            linewidth=look.width * 0.8, marker=look.marker if len(line.x) == 1 else "",
            drawstyle="steps-mid" if panel.steps else "default",
        )  # fmt: skip
        if line.dots:
            x, y = zip(*line.dots, strict=True)
            axis.scatter(
                x, y, s=_size(len(x)) ** 2 / 2, color=look.colour, marker=look.marker,
                alpha=_opacity(len(x)), linewidths=0, rasterized=True,
            )  # fmt: skip
    for log, which, values in (
        (panel.log_x, "x", [x for x, _ in _extent(panel.lines)]),
        (panel.log_y, "y", [y for _, y in _extent(panel.lines)]),
    ):
        if log:
            getattr(axis, f"set_{which}scale")("log")
            ticks = getattr(axis, f"{which}axis")
            ticks.set_ticks(_ticks(values))
            ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ticks.set_minor_locator(NullLocator())
    axis.set_title(
        textwrap.fill(_text(panel.title), _TITLE_LETTERS), fontsize=11, color=INK, loc="left"
    )
    axis.set_xlabel(panel.x_title)
    axis.set_ylabel(panel.y_title)
    if panel.y_axis is not None:
        axis.set_ylim(panel.y_axis)
        note = textwrap.fill(_text(panel.beyond), _TITLE_LETTERS)
        axis.text(0.98, 0.03, note, transform=axis.transAxes, ha="right", fontsize=8, color=INK)
    style(axis, grid="both")


def _linestyle(look: Look) -> tuple[float, tuple[float, ...]] | Literal["-"]:
    # matplotlib's dashes are in units of the line's width
    return (0, tuple(length / look.width for length in look.dashes)) if look.dashes else "-"


def draw_heatmap(shown: Heatmap) -> Figure:
    """A heatmap, with its values where there is room for them."""
    roomy = len(shown.columns) <= _FEW_COLUMNS
    columns = [_text(name, _TICK_LETTERS) for name in shown.columns]
    label = 0.08 * max(map(len, shown.rows))
    width = 1.5 + label + (0.85 if roomy else 0.36) * len(columns)
    tilt = max(map(len, columns)) > (10 if roomy else 3)
    figure = Figure(
        figsize=(max(5.0, width), 1.1 + (1.0 if tilt else 0) + 0.3 * len(shown.rows)),
        layout="constrained",
    )
    axis = figure.subplots()
    values = np.array(shown.values, dtype=np.float64)
    image = axis.imshow(values, aspect="auto", cmap="cividis")
    axis.set_xticks(range(len(columns)), columns)
    if tilt:
        for text in axis.get_xticklabels():
            text.set(rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(shown.rows)), shown.rows)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    if roomy:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axis.text(
                    column, row, f"{value:.2g}", ha="center", va="center", fontsize=8,
                    color="white" if value < middle else INK,
                )  # fmt: skip
    figure.colorbar(image, ax=axis, pad=0.01, aspect=30)
    axis.set_title(_text(shown.title), fontsize=11, color=INK, loc="left")
    style(axis, grid="both")
    axis.grid(False)
    return figure


def _text(text: str, letters: int = 2 * _TITLE_LETTERS) -> str:
    """Short, and without what matplotlib takes for a formula."""
    return textwrap.shorten(text, letters, placeholder=" ...").replace("$", r"\$")


# -- both ----------------------------------------------------------------------------------------


def _extent(lines: Sequence[Line]) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in lines
        for x, y in [*zip(line.x, line.y, strict=True), *line.dots]
    ]


def _ticks(values: Sequence[float]) -> list[float]:
    """Where a log axis has its ticks: few round numbers."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not positive:
        return []
    low, high = min(positive), max(positive)
    if high > _DECADE * low:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if high < 1000 * low else (1,)
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    else:
        ticks = [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]
    return [tick for tick in ticks if tick > 0 and low / 1.3 <= tick <= high * 1.3]


def _size(dots: int) -> float:
    return float(np.clip(60 / math.sqrt(max(1, dots)), 2.5, 5))


def _opacity(dots: int) -> float:
    return 0.6 if dots < 100 else 0.45
