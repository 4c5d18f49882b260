"""What the commands share of writing to a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


class Stream:
    """A standard stream; a command goes on without it once it is closed, or its disk is full.

    Attributes:
        lost: the error since which nothing is written.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`, which also has all other attributes."""
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what waits, or drop it."""
        self._try(lambda: self._stream.flush())

    def _try(self, act: Callable[[], object]) -> None:
        if self.lost or self._stream is None:  # as Python has it where a shell closed it
            return
        try:
            act()
        except OSError as error:
            self.lost = error
            with suppress(OSError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self._stream.fileno())  # for processes, and for what waits


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
