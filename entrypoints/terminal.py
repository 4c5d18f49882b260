"""What the commands share of writing to a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def width() -> int:
    """How many characters a line of help may have."""
    return min(shutil.get_terminal_size((100, 24)).columns, 120)


def in_columns(left: str, text: str, column: int, room: int) -> str:
    """A name on the left, and from `column` on a text in lines of `room` characters."""
    lines = textwrap.wrap(text, room) or [""]
    first = f"{left:<{column - 1}} {lines[0]}"
    return "\n".join([first, *(" " * column + line for line in lines[1:])])


def console() -> Console:
    """Standard output, wide where nobody's window bounds it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)
