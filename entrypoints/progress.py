"""Progress on standard error: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_plugins.eval_suites.evaluation.manifest import Row


class _Bar:
    """tqdm's bar where standard error is a terminal."""

    def __init__(self, total: int, bar_format: str, **options: Any) -> None:
        from tqdm import tqdm

        self._stream = sys.stderr  # a suite may redirect it meanwhile
        self._total, self._began = total, time.perf_counter()
        self._bar = tqdm(
            total=total,
            file=self._stream,
            disable=not self._stream.isatty(),
            dynamic_ncols=True,
            bar_format=bar_format,
            **options,
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def stage(self, text: str) -> None:
        """Show what is being done now."""
        self._bar.set_description_str(text)

    def _say(self, text: str) -> None:
        """Print a line, and the seconds so far, where there is no terminal."""
        if self._bar.disable:
            seconds = time.perf_counter() - self._began
            print(f"{text} ({seconds:.0f} s)", file=self._stream, flush=True)


class RowsProgress(_Bar):
    """The rows of an evaluation: counted in a bar, or a line per finished one."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "{n_fmt}/{total_fmt} |{bar:20}| {elapsed} {desc}", unit="row")
        self._done = 0

    def finished(self, row: Row, again: bool) -> None:
        """Count a row."""
        self._done += 1
        self._bar.update()
        status = "ok, was there" if again else row.status
        self._say(f"{self._done}/{self._total} {row.suite}, {row.sae}, seed {row.seed}: {status}")


class StudyProgress(_Bar):
    """All SAEs and evaluations of a study: their share in a bar, or a line per stage."""

    def __init__(self) -> None:
        super().__init__(0, "{percentage:3.0f}% |{bar:20}| {elapsed}<{remaining} {desc}")
        self._done = 0.0

    def expect(self, shares: int) -> None:
        """Lengthen the bar."""
        self._total += shares
        self._bar.total = self._total
        self._bar.refresh()

    def stage(self, text: str) -> None:
        """Show what is being done now."""
        super().stage(text)
        self._say(f"{100 * self._done / max(1, self._total):3.0f}% {text}")

    def advance(self, share: float) -> None:
        """Count what was done."""
        self._done += share
        self._bar.update(share)
