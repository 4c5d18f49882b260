"""What the commands share of writing to a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def width() -> int:
    """How many characters a line of help may have."""
    return min(shutil.get_terminal_size((100, 24)).columns, 120)


def in_columns(left: str, text: str, column: int, room: int) -> str:
    """A name on the left, and from `column` on a text in lines of `room` characters.

    The text begins below a name that is too long.
    """
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    first = [f"{left:<{column - 1}} {lines.pop(0)}"] if lines and len(left) < column else [left]
    return "\n".join([*first, *(" " * column + line for line in lines)])


def table(rows: Mapping[str, str]) -> str:
    """Names on the left, and what they are in lines beside them."""
    column = max(map(len, rows), default=0) + 2
    room = max(width() - column, 30)
    return "\n".join(in_columns(left, text, column, room) for left, text in rows.items())


def console() -> Console:
    """Standard output, wide where nobody's window bounds it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)
