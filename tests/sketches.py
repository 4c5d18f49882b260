"""What a figure shows, in words: tests that are not about pictures have these in their place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

draw = Figure.savefig


def write(figure: Figure, path: Path, **_: Any) -> None:
    """In the place of `Figure.savefig`: a line for all that the figure shows.

    Figures of the same data have the same lines; those of other data, or without some of it, have
    others.
    """
    path.write_text("\n".join(_lines(figure)))


def _lines(figure: Figure) -> Iterator[str]:
    width, height = figure.get_size_inches()
    yield f"figure {width:g} x {height:g} {_words(figure.legends)}"
    for panel in figure.axes:
        yield f"panel {panel.axis()} {panel.get_xscale()} {panel.get_yscale()}"
        words = [panel.get_title(), panel.get_xlabel(), panel.get_ylabel()]
        yield f"{words} {_words([panel.get_legend()])} {[text.get_text() for text in panel.texts]}"
        for line in panel.lines:
            style = (line.get_label(), line.get_color(), line.get_linestyle(), line.get_marker())
            yield f"line {style} {_digest([line.get_xydata()])}"
        for drawn in panel.collections:
            style = (drawn.get_label(), drawn.get_facecolor().tolist())
            vertices = (path.vertices for path in drawn.get_paths())
            yield f"collection {style} {_digest([drawn.get_offsets(), *vertices])}"
        for patch in panel.patches:
            place = patch.get_patch_transform().transform(patch.get_path().vertices)
            yield f"patch {patch.get_label()} {patch.get_facecolor()} {_digest([place])}"
        for image in panel.images:
            yield f"image {image.get_extent()} {_digest([image.get_array()])}"


def _words(legends: Iterable[Any]) -> list[str]:
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def _digest(arrays: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for array in map(np.ma.filled, map(np.ma.asarray, arrays)):
        digest.update(repr((array.shape, array.dtype)).encode() + array.tobytes())
    return digest.hexdigest()
