"""The closing table of a run."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SCIENTIFIC_BELOW, _SCIENTIFIC_FROM = 1e-3, 1e12


def format_value(value: Any) -> str:
    """Four significant digits, thousands separators, `n/a` for None and NaN; text as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if not _SCIENTIFIC_BELOW <= abs(value) < _SCIENTIFIC_FROM:
        return f"{value:.3e}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def print_summary(title: str, rows: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a table of names and values, grouped by what precedes the first "/" of a name.

    Args:
        title: above the table.
        rows: numbers, text or None by name; groups come in the order of their first row.
        console: where to print; standard output if None.
    """
    groups: dict[str, list[tuple[str, Any]]] = {}
    for name, value in rows.items():
        group, slash, rest = name.partition("/")
        groups.setdefault(group if slash else "", []).append((rest if slash else name, value))
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for group, members in groups.items():
        if group:
            table.add_row(Text(group, style="bold"))
        for name, value in members:
            table.add_row(Text(f"  {name}" if group else name), Text(format_value(value)))
        table.add_section()
    (console or Console()).print(table)


def arrow(better: str) -> str:
    """Which way is better."""
    return {"higher": "↑", "lower": "↓"}.get(better, "")


def plain(value: Any) -> Any:
    """Text that Markdown shows as it is, also in a table's cell."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(value, quote=False))
    return " ".join(escaped.split())
