"""Progress on standard error: a bar that moves on a terminal, and lines elsewhere.

Where there is no terminal, a line comes with every stage, and every 30 seconds where steps are
counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_plugins.eval_suites.evaluation.manifest import Row


_SECONDS_BETWEEN_LINES = 30.0


class _Bar:
    """tqdm's bar where standard error is a terminal."""

    def __init__(self, total: int, bar_format: str, **options: Any) -> None:
        from tqdm import tqdm

        self._stream = sys.stderr  # a suite may redirect it meanwhile
        self._total = total
        self._began = self._said = time.perf_counter()
        self._bar = tqdm(
            total=total,
            file=self._stream,
            disable=not self._stream.isatty(),
            dynamic_ncols=True,
            mininterval=1,
            bar_format=bar_format,
            **options,
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _say(self, text: str) -> None:
        """Print a line, and the seconds so far, where there is no terminal."""
        if self._bar.disable:
            self._said = time.perf_counter()
            print(f"{text} ({self._said - self._began:.0f} s)", file=self._stream, flush=True)

    def _is_time(self) -> bool:
        """Whether a line is due where there is no terminal."""
        passed = time.perf_counter() - self._said
        return bool(self._bar.disable) and passed >= _SECONDS_BETWEEN_LINES


class _StagesBar(_Bar):
    """A bar, or a line for each stage: how much is done, and what is being done."""

    _done: float = 0
    _stage = ""

    def stage(self, text: str) -> None:
        """Show what is being done now."""
        self._stage = text
        self._bar.set_description_str(text)
        self._say(self._line())

    def advance(self, share: float) -> None:
        """Count what was done."""
        self._done += share
        self._bar.update(share)
        if self._is_time():
            self._say(self._line())

    def _line(self) -> str:
        return f"{100 * self._done / max(1, self._total):3.0f}% {self._stage}"


class RowsProgress(_StagesBar):
    """The rows of an evaluation: counted in a bar, or a line per stage and per finished one."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "{n_fmt}/{total_fmt} |{bar:20}| {elapsed} {desc}", unit="row")

    def finished(self, row: Row, again: bool) -> None:
        """Count a row."""
        self._done += 1
        self._bar.update()
        status = "ok, was there" if again else row.status
        self._stage = f"{row.suite}, {row.sae}, seed {row.seed}: {status}"
        self._say(self._line())

    def _line(self) -> str:
        return f"{self._done}/{self._total} {self._stage}"


class StudyProgress(_StagesBar):
    """All SAEs and evaluations of a study: their share in a bar, or a line per stage."""

    def __init__(self) -> None:
        super().__init__(0, "{percentage:3.0f}% |{bar:20}| {elapsed}<{remaining} {desc}")

    def expect(self, shares: int) -> None:
        """Lengthen the bar."""
        self._total += shares
        self._bar.total = self._total
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=sys.stdout)


class FeaturesProgress(_StagesBar):
    """The tokens that feature pages read: their share in a bar, or a line per stage."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "{percentage:3.0f}% |{bar:20}| {elapsed}<{remaining} {desc}")

    def read(self, tokens: int) -> None:
        """Count tokens that have been read; a last prompt may go beyond those asked for."""
        self.advance(min(tokens, round(self._total - self._done)))


_SHOWN = {
    "EV": "metrics/explained_variance",
    "L0": "metrics/l0",
    "dead": "sparsity/dead_features",
}


class TrainProgress(_Bar):
    """The steps of a training, with its speed and what the last row of its metrics says.

    Speed and time left go by the time that is shown. The first step waits until the buffer is
    full, so it tells no speed, and no time left until as long again has passed.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        bar = "{percentage:3.0f}% |{bar:20}| step {n:.0f}/{total:.0f} {elapsed} {desc}"
        super().__init__(total, bar, initial=done)
        self._before = done
        self._first: tuple[int, float] | None = None

    def trained(self, step: int, tokens: int, row: Mapping[str, Any]) -> None:
        """Say how many steps are done on how many tokens, and the last row of `metrics.jsonl`."""
        passed = time.perf_counter() - self._began
        self._first = self._first or (step, passed)
        if not (step >= self._total or self._is_time() or not self._bar.disable):
            return
        known = {name: row.get(key) for name, key in _SHOWN.items()}
        numbers = [f"{name} {value:.3g}" for name, value in known.items() if value is not None]
        text = ", ".join([*self._speed(step, tokens, passed), *numbers, *self._left(step, passed)])
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        steps = f"{100 * step / self._total:3.0f}% step {step}/{self._total}"
        self._say(f"{steps}, {text}" if text else steps)

    def _speed(self, step: int, tokens: int, passed: float) -> list[str]:
        """The tokens of a second; nothing where only the first step is known."""
        assert self._first is not None
        if not passed or step == self._first[0] < self._total:
            return []
        now = tokens * (step - self._before) / step  # not those before the run went on
        return [f"{now / passed:,.0f} tokens/s"]

    def _left(self, step: int, passed: float) -> list[str]:
        """The time left; nothing while the first step says more of it than all others."""
        assert self._first is not None
        if step >= self._total or passed < 2 * self._first[1] or step == self._first[0]:
            return []
        return [f"{(self._total - step) * passed / (step - self._before):.0f} s left"]
