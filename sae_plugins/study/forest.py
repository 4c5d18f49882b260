"""The forest plot of a study: each arm's difference from the reference, on each metric."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sae_plugins.base.plots import BLUE, COLOURS, GREY, INK, style
from sae_plugins.study.axes import farthest_near, padded
from sae_plugins.study.statistics import Comparison, Verdict
from sae_plugins.study.words import MARKS, number


@dataclass(frozen=True)
class _Mark:
    """How a verdict is drawn."""

    colour: str
    symbol: str
    """Of plotly."""
    marker: str
    """Of matplotlib."""


_MARKS: dict[Verdict, _Mark] = {
    "better": _Mark(BLUE, "triangle-up", "^"),
    "worse": _Mark(COLOURS[1], "triangle-down", "v"),
    "equivalent": _Mark(COLOURS[2], "diamond", "D"),
    "not distinguishable": _Mark(INK, "circle-open", "o"),
    "underpowered": _Mark(GREY, "circle-open", "o"),
}
"""Shapes tell better from worse where there is no colour."""
_MARGIN, _MARGIN_OPACITY = COLOURS[2], 0.12
_ROW = 26
"""Pixels of an arm."""


@dataclass(frozen=True)
class Edge:
    """An arm that is off the axis, or whose interval is: an arrow at the end."""

    arm: str
    x: float
    side: Literal["left", "right"]
    text: str
    """The arrow, with the difference where that is off the axis, too."""
    colour: str


@dataclass(frozen=True)
class Forest:
    """The comparisons of one metric, an arm a row."""

    title: str
    margin: float | None
    """The smallest difference that matters; a band shows it."""
    rows: Sequence[tuple[str, Comparison]]
    """Arms that were compared."""
    axis: tuple[float, float] | None = None
    """Where the axis ends, if some arm is beyond."""

    @property
    def arms(self) -> list[str]:
        """In their order, from the top."""
        return [arm for arm, _ in self.rows]

    @property
    def edges(self) -> list[Edge]:
        """What stands at the ends of the axis."""
        return [edge for arm, found in self.rows for edge in self._edges(arm, found)]

    def _edges(self, arm: str, found: Comparison) -> Iterator[Edge]:
        mark, middle = _MARKS.get(found.verdict), found.difference
        if self.axis is None or mark is None or middle is None:
            return
        words = f"{MARKS.get(found.verdict, '')} {number(middle, '+')}".strip()
        (low, high), (least, most) = self.axis, _span(found)
        if least < low:
            yield Edge(arm, low, "left", f"◀ {words}" if middle < low else "◀", mark.colour)
        if most > high:
            yield Edge(arm, high, "right", f"{words} ▶" if middle > high else "▶", mark.colour)


def forest(title: str, rows: Sequence[tuple[str, Comparison]]) -> Forest:
    """A forest of those comparisons that found a difference."""
    known = [(arm, found) for arm, found in rows if found.difference is not None]
    margins = {found.margin for _, found in known}
    margin = margins.pop() if len(margins) == 1 else None
    return Forest(title, margin, known, _axis([found for _, found in known], margin or 0.0))


def _axis(found: Sequence[Comparison], margin: float) -> tuple[float, float] | None:
    """Where an axis ends that shows all but what is far off; None if it shows all."""
    spans = [(_span(one), max(map(abs, _span(one)))) for one in found]
    most = farthest_near([reach for _, reach in spans])
    if most is None:
        return None
    near = [end for span, reach in spans if reach <= most for end in span]
    return padded([-margin, margin, *near])


def _span(found: Comparison) -> tuple[float, float]:
    """From where to where the interval reaches, or the difference where there is none."""
    middle = found.difference or 0.0
    return found.interval or (middle, middle)


def plotly(shown: Forest) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Traces and layout for plotly.js."""
    data: list[dict[str, object]] = []
    for verdict, mark in _MARKS.items():
        found = [(arm, c) for arm, c in shown.rows if c.verdict == verdict]
        if found:
            ends = [_ends(comparison) for _, comparison in found]
            data.append({
                "type": "scatter", "mode": "markers", "name": verdict,
                "x": [c.difference for _, c in found], "y": [html.escape(a) for a, _ in found],
                "error_x": {
                    "type": "data", "symmetric": False, "color": mark.colour, "thickness": 1.6,
                    "array": [high for _, high in ends], "arrayminus": [low for low, _ in ends],
                },
                "marker": {"color": mark.colour, "symbol": mark.symbol, "size": 10},
                "hovertemplate": f"%{{y}}: {verdict}<br>%{{x:.3g}}<extra></extra>",
            })  # fmt: skip
    line = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1}
    shapes: list[dict[str, object]] = [{**line, "x0": 0, "x1": 0, "line": {"color": GREY}}]
    if shown.margin is not None:
        shapes.append({
            **line, "type": "rect", "x0": -shown.margin, "x1": shown.margin, "layer": "below",
            "fillcolor": _MARGIN, "opacity": _MARGIN_OPACITY, "line": {"width": 0},
        })  # fmt: skip
    x_axis = {"range": list(shown.axis)} if shown.axis else {}
    return data, {
        "xaxis": {"zeroline": False, "nticks": 5, "automargin": True,
                  "gridcolor": "rgba(128,128,128,0.25)", **x_axis},
        "yaxis": {"type": "category", "categoryorder": "array",
                  "categoryarray": list(map(html.escape, shown.arms)), "autorange": "reversed",
                  "automargin": True, "showgrid": False},
        "annotations": [
            {"x": edge.x, "y": html.escape(edge.arm), "text": edge.text, "showarrow": False,
             "xanchor": edge.side, "font": {"color": edge.colour}}
            for edge in shown.edges
        ],
        "shapes": shapes, "height": 70 + _ROW * max(2, len(shown.rows)),
        "margin": {"l": 20, "r": 12, "t": 8, "b": 30},
    }  # fmt: skip


def draw(forests: Sequence[Forest]) -> Figure:
    """Metrics side by side, an arm a row in all of them, with what the marks mean below."""
    arms = list(dict.fromkeys(arm for shown in forests for arm in shown.arms))
    columns = min(4, len(forests))
    rows = math.ceil(len(forests) / columns)
    height = rows * (0.75 + 0.26 * max(2, len(arms))) + 0.5
    figure = Figure(
        figsize=(1.2 + 0.07 * max(map(len, arms)) + 2.5 * columns, height), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, shown in zip(axes, forests, strict=False):
        _draw(axis, shown, arms)
    for axis in axes[len(forests) :]:
        axis.set_axis_off()
    verdicts = {found.verdict for shown in forests for _, found in shown.rows}
    handles = [
        Line2D([], [], color=mark.colour, marker=mark.marker, linestyle="", label=verdict,
               markerfacecolor=_face(mark))
        for verdict, mark in _MARKS.items() if verdict in verdicts
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10
    )
    return figure


def _draw(axis: Axes, shown: Forest, arms: Sequence[str]) -> None:
    axis.axvline(0, color=GREY, linewidth=1)
    if shown.margin is not None:
        axis.axvspan(-shown.margin, shown.margin, color=_MARGIN, alpha=_MARGIN_OPACITY, linewidth=0)
    for arm, found in shown.rows:
        mark = _MARKS.get(found.verdict)
        if mark is None or found.difference is None:
            continue
        axis.errorbar(
            [found.difference], [arms.index(arm)], xerr=[[end] for end in _ends(found)],
            color=mark.colour, marker=mark.marker, markerfacecolor=_face(mark), markersize=6,
            linewidth=1.4,
        )  # fmt: skip
    for edge in shown.edges:
        axis.text(
            edge.x, arms.index(edge.arm), f" {edge.text} ", color=edge.colour, fontsize=8,
            ha=edge.side, va="center",
        )  # fmt: skip
    if shown.axis:
        axis.set_xlim(shown.axis)
    axis.set_yticks(range(len(arms)), [arm.replace("$", r"\$") for arm in arms])
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_title(shown.title.replace("$", r"\$"), fontsize=10, color=INK, loc="left")
    style(axis, grid="x")


def _face(mark: _Mark) -> str:
    return "none" if mark.symbol.endswith("open") else mark.colour


def _ends(found: Comparison) -> tuple[float, float]:
    """How far the interval reaches to the left and to the right of the difference."""
    if found.difference is None or found.interval is None:
        return (0.0, 0.0)
    low, high = found.interval
    return (found.difference - low, high - found.difference)
