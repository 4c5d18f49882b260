"""The look that all plots share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sae_plugins.base.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#222222", "#8a8a8a"
# Okabe and Ito's colours, which stay apart for the colour-blind; yellow left out: too pale here
BLUE, COLOURS = "#0072b2", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DPI = 120


def save(figure: Figure, path: Path) -> None:
    """Write a file of the kind that its ending says; it is either whole or not there."""
    kind = path.suffix[1:]
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with whole(path) as partial:
        figure.savefig(partial, format=kind, dpi=DPI, metadata=undated)


def style(panel: Axes, grid: Literal["x", "y", "both"]) -> None:
    """A light grid, no box, and sizes that do not depend on the user's settings."""
    panel.grid(True, axis=grid, color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=10, colors=INK, which="both", length=3)
    panel.tick_params(which="minor", labelleft=False)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for label in (panel.xaxis.label, panel.yaxis.label):
        label.set(fontsize=11, color=INK)
