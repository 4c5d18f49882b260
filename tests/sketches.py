"""What a figure shows, without drawing it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure


def sketch(figure: Figure) -> str:
    """A line for all that a figure shows: limits, scales and words of its panels, and their data.

    Figures of the same data have the same sketch; those of other data, or without some of it, have
    another.
    """
    return "\n".join(_lines(figure))


def save_sketch(figure: Figure, path: Path) -> None:
    """Write a sketch in the place of a picture."""
    path.write_text(sketch(figure))


def _lines(figure: Figure) -> Iterator[str]:
    width, height = figure.get_size_inches()
    yield f"figure {width:g} x {height:g}: {_words(figure.legends)}"
    for panel in figure.axes:
        limits, scales = panel.axis(), (panel.get_xscale(), panel.get_yscale())
        yield f"panel {limits} {scales}"
        words = [panel.get_title(), panel.get_xlabel(), panel.get_ylabel()]
        yield f"{words} {_words([panel.get_legend()])} {[text.get_text() for text in panel.texts]}"
        for line in panel.lines:
            style = (line.get_label(), line.get_color(), line.get_linestyle(), line.get_marker())
            yield f"line {style} {_digest(line.get_xydata())}"
        for points in panel.collections:
            style = (points.get_label(), points.get_facecolor().tolist())
            yield f"points {style} {_digest(points.get_offsets())}"


def _words(legends: list) -> list[str]:
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def _digest(data) -> str:
    return f"{data.shape} {hashlib.sha256(data.tobytes()).hexdigest()}"
