"""Signals, answered between two steps, or two states of a folder, and not within.

SIGINT and SIGTERM stop a run. SIGUSR1 pauses it, which schedulers send before its time is over.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sae_plugins.base.clock import age, seconds_in
from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import ranks
from sae_plugins.base.saelens import interruption

_PAUSE = signal.SIGUSR1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, _PAUSE)


class Signals:
    """Remembers signals until the step in progress has ended; a second to stop does it at once.

    Attributes:
        stops: whether the run is to stop.
    """

    def __init__(self, max_time: str | None = None) -> None:
        """Nothing is received, and nothing deferred yet.

        Args:
            max_time: of this process, after which the run is to pause; None for no end.

        Raises:
            SaePluginsError: that is no length of time.
        """
        self.stops = self._is_told_to_pause = False
        self._max_time = max_time
        self._life = None if max_time is None else seconds_in(max_time)
        self._deferring = False
        self._training = True
        self._is_said = False

    @property
    def pauses(self) -> bool:
        """Whether the run is to stop and to go on later; rank 0 looks at the clock."""
        return self._is_told_to_pause or self._is_over()

    def _is_over(self) -> bool:
        return self._life is not None and ranks().writes and age() >= self._life

    def defer(self) -> None:
        """Answer signals from now on, whoever did before.

        Raises:
            PluginError: the time is over already.
        """
        if self._life is not None and ranks().agree(self._is_over())[0]:
            raise PluginError(
                f"the time of {self._max_time} was over before the first step, so that the run "
                "would never get on: give it more, of which loading takes a part"
            )
        if self._deferring or not _in_main_thread():
            return
        self._deferring = True
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def training_ended(self) -> None:
        """From now on the first signal lets the SAE be saved: there is nothing to go on from."""
        self._training = False
        if self.stops or self.pauses:
            _say(f"training has ended meanwhile, and the SAE is being saved{self._again}")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == _PAUSE:
            self._is_told_to_pause = True
        elif self.stops or not self._deferring:
            raise interruption()
        else:
            self.stops = True
        if not self._training:
            _say(f"saving the SAE{self._again}")
        elif ranks().size == 1:  # several agree on it first: one of them may be gone
            self.agreed()

    def agreed(self) -> None:
        """A signal that some rank has received is answered now."""
        if ranks().writes and not self._is_said:
            self._is_said = True
            _say(f"finishing the step and writing a checkpoint{self._again}")

    @property
    def _again(self) -> str:
        return "; again to stop at once" if self.stops else ""


class Waiting:
    """Signals that wait for the end of a step, where they are answered as they would have been.

    A second one of a kind is answered at once, and those that are ignored stay so.
    """

    def __init__(self) -> None:
        """Nothing waits yet."""
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Waiting:
        for number in _SIGNALS if _in_main_thread() else ():
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._answer()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if self._received.count(number) > 1:
            self._answer()
        elif multiprocessing.parent_process() is None:  # of several, the first one speaks
            _say("finishing the step and writing a checkpoint; again to stop at once")

    def answer(self, first: Callable[[], None]) -> None:
        """A step has ended: if a signal waits, do what comes first, and answer it."""
        if self._received:
            first()
            self._answer()
            self.__enter__()  # whoever answered lets all go on

    def _answer(self) -> None:
        """Put back who answered signals before, and have what waits answered."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        received, self._received = self._received, []
        if received:
            # what ends this process does so, also where Ctrl-C came before it to all of a group
            ends = [each for each in received if signal.getsignal(each) == signal.SIG_DFL]
            signal.raise_signal([*ends, *received][0])


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back today's handlers afterwards; SAELens' runners replace them."""
    if not _in_main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(number, handler)


@contextmanager
def deferred(what: str) -> Iterator[None]:
    """Answer signals that come inside when the block has ended, as they would have been.

    Args:
        what: is being done, for who sends one.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _say(f"{what}, and stopping then")

    with handlers_kept():
        for number in _SIGNALS if _in_main_thread() else ():
            signal.signal(number, receive)
        yield
    for first in received[:1]:
        signal.raise_signal(first)


def _say(what: str) -> None:
    # not print: the signal may have come in the middle of one
    os.write(2, f"\n{what}\n".encode())


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
