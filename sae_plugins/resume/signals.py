"""SIGINT and SIGTERM, answered between two steps, or two states of a folder, and not within."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sae_plugins.base.ranks import ranks
from sae_plugins.base.saelens import interruption

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Remembers the first signal until the step in progress has ended; the second stops at once."""

    def __init__(self) -> None:
        """Nothing is received, and nothing deferred yet."""
        self.received = False
        self._deferring = False
        self._training = True
        self._is_said = False

    def defer(self) -> None:
        """Answer signals from now on, whoever did before."""
        if self._deferring or not _in_main_thread():
            return
        self._deferring = True
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def training_ended(self) -> None:
        """From now on the first signal lets the SAE be saved: there is nothing to go on from."""
        self._training = False
        if self.received:
            _say("training has ended meanwhile, and the SAE is being saved; again to stop at once")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received or not self._deferring:
            raise interruption()
        self.received = True
        if not self._training:
            _say("saving the SAE; again to stop at once")
        elif ranks().size == 1:  # several agree on it first: one of them may be gone
            self.agreed()

    def agreed(self) -> None:
        """A signal that some rank has received is answered now."""
        if ranks().writes and not self._is_said:
            self._is_said = True
            _say("finishing the step and writing a checkpoint; again to stop at once")


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
