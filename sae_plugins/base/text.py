"""Values and words as people read them."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

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


def duration(seconds: float) -> str:
    """How long something takes, as people say it: in two units, or in seconds."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, round(seconds / 3600) // 24
    if days:
        return f"{days} d {round(seconds / 3600) % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def arrow(better: str) -> str:
    """Which way is better."""
    return {"higher": "↑", "lower": "↓"}.get(better, "")


def as_markdown(value: Any) -> Any:
    """Text that Markdown shows as it is, also in a table's cell."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(value, quote=False))
    return " ".join(escaped.split())


def in_words(names: Sequence[str]) -> str:
    """Names as people list them: a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def natural(text: str) -> list[Any]:
    """A sort key that puts top_5 before top_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a table with these columns."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
