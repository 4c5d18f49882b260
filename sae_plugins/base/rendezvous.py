"""Where ranks meet: a store of texts in torchrun's process, or in that of rank 0.

Its machine may freeze, and torch waits for its answers without limit. So a thread of its own asks
whatever is asked, and is left behind where no answer comes.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_POLL = 0.05
"""Seconds between two looks."""
_BEAT = 5.0
"""Seconds between two signs of life, or less where the limit is short."""
_OF_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""A variable that is "True" where torchrun has the store."""
_PAUSED = "paused"
"""In the store, for ranks that torchrun starts again at once: their run goes on later."""


class Silent(RuntimeError):
    """The store has not answered in time."""


class Rendezvous:
    """The store, as one of the ranks sees it, and the signs of life that they leave there.

    Attributes:
        limit: seconds that one waits for another.
        patience: seconds that one waits for an answer of the store.
        lost: why nobody asks it any more, in a sentence; None while it answers.
    """

    def __init__(self, rank: int, size: int, limit: float) -> None:
        """A store that has not been found yet."""
        self.rank, self.size = rank, size
        self.limit = self.patience = limit
        self.lost: str | None = None
        self._has_left = threading.Event()
        self._heard = 0.0
        self._beats: dict[int, tuple[str, float]] = {}
        # torch's connection is its own: it waits there for others, and nobody else can ask
        self._torchs: Any = None
        self._whole: Any = None
        self._own: Any = None

    # -- meeting -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Find the store.

        Raises:
            RuntimeError: it is not there in time.
        """
        from torch._C._distributed_c10d import TCPStore
        from torch.distributed.rendezvous import rendezvous

        os.environ.setdefault("RANK", str(self.rank))
        os.environ.setdefault("WORLD_SIZE", str(self.size))
        os.environ.setdefault("MASTER_PORT", "29500")  # as torchrun has it
        limit = timedelta(seconds=self.limit)

        def connections() -> tuple[Any, Any]:
            torchs, *_ = next(rendezvous("env://", timeout=limit))
            alone: dict[str, Any] = {"is_master": False, "wait_for_workers": False}
            return torchs, TCPStore(*_address(), timeout=limit, **alone)

        # torch keeps the limit itself where the store is late, and not where it is frozen
        self._torchs, self._whole = self._asked(connections, self.limit + _BEAT)

    def begin(self) -> Any:
        """Agree on this start of the ranks, and live; what torch may keep at the store.

        torchrun's store outlives the ranks, and has what those before them have left. How often it
        has started them, its processes on several machines count differently. So rank 0 names the
        start, and tells the name to whoever says hello by a name of its own.

        Raises:
            RuntimeError: not all said hello in time.
        """
        from torch._C._distributed_c10d import PrefixStore

        name = uuid.uuid4().hex
        if self.rank:
            self._whole.set(f"hello/{self.rank}", name)
            welcome = f"welcome/{name}"
            self._until(lambda: self._whole.check([welcome]))
            name = self._asked(lambda: self._whole.get(welcome).decode(), self.patience)
        self._own = PrefixStore(f"start {name}", self._whole)
        self._own.set(f"beat/{self.rank}", "0")
        if self.rank == 0:
            self._until(lambda: self._is_everybody_here(name))
        self._heard = time.monotonic()
        threading.Thread(target=self._live, daemon=True).start()
        return PrefixStore(f"torch {name}", self._torchs)

    def _is_everybody_here(self, name: str) -> bool:
        """Whether all have come; welcomes those who have just done."""
        missing = [r for r in range(1, self.size) if not self._own.check([f"beat/{r}"])]
        for rank in missing:
            if self._whole.check([f"hello/{rank}"]):  # or somebody's who is no more
                self._whole.set(f"welcome/{self._whole.get(f'hello/{rank}').decode()}", name)
        return not missing

    def missing(self) -> list[int]:
        """The ranks of this start that have not come; rank 0 alone where nobody has named it."""
        if self._own is None:
            return [0] if self._whole is not None else []
        return [rank for rank in range(self.size) if not self.knows(f"beat/{rank}")]

    def beside(self, act: Callable[[], Answer]) -> Answer:
        """What an act returns that waits at the store, however long that takes.

        Raises:
            Silent: the store has not answered for too long.
        """
        return self._asked(act)

    # -- signs of life -------------------------------------------------------------------------

    def late(self, since: float) -> list[int]:
        """The ranks that have given no sign of life for too long, of which `since` is the begin.

        Raises:
            Silent: nor has the store.
        """
        now = time.monotonic()
        if now - max(since, self._heard) > self.limit:
            raise self._silent()
        others = (rank for rank in range(self.size) if rank != self.rank)
        beats = {rank: self._beats.get(rank, ("", 0.0))[1] for rank in others}
        return [rank for rank, at in beats.items() if now - max(since, at) > self.limit]

    def _live(self) -> None:
        """Give signs of life, and take those of others, from a thread of its own."""
        beats, names = 0, [f"beat/{rank}" for rank in range(self.size)]
        try:
            while not self._has_left.wait(min(_BEAT, self.limit / 4)):
                beats += 1
                self._own.set(names[self.rank], str(beats))
                self._own.check(names)  # which says nothing of its own where no answer comes
                for rank, name in enumerate(names):
                    beat = self._own.get(name).decode()
                    if beat != self._beats.get(rank, ("",))[0]:
                        self._beats[rank] = beat, time.monotonic()
                self._heard = time.monotonic()
        except Exception:
            self._is_gone()

    def leave(self) -> None:
        """Give no more signs of life."""
        self._has_left.set()

    # -- texts by name; none where the store is lost ----------------------------------------------

    def tell(self, name: str, text: str) -> None:
        """Leave a text for the others."""
        self._answer(lambda: self._own.set(name, text), None)

    def knows(self, name: str) -> bool:
        """Whether somebody has left a text of this name."""
        return self._answer(lambda: bool(self._own.check([name])), False)

    def known(self, name: str) -> str:
        """The text of this name, which is there."""
        return self._answer(lambda: str(self._own.get(name).decode()), "")

    def pause(self) -> None:
        """Tell those whom torchrun starts next that the run has paused."""
        self._answer(lambda: self._whole.set(_PAUSED, ""), None)

    def is_paused(self) -> bool:
        """Whether a rank has paused, now or before torchrun started this one."""
        return self._answer(lambda: bool(self._whole.check([_PAUSED])), False)

    # -- asking --------------------------------------------------------------------------------

    def _asked(self, ask: Callable[[], Answer], seconds: float | None = None) -> Answer:
        """What `ask` returns; without a limit, as long as the store gives signs of life."""
        if self.lost is not None:
            raise Silent(self.lost)
        found: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

        def act() -> None:
            try:
                found.put((ask(), None))
            except Exception as error:
                found.put((None, error))

        threading.Thread(target=act, daemon=True).start()
        begun = time.monotonic()
        while True:
            try:
                answer, error = found.get(timeout=_POLL if seconds is None else seconds)
            except Empty:
                if seconds is not None:
                    raise self._silent() from None
                self.late(begun)
                continue
            if error is not None:
                raise error
            return answer  # type: ignore[no-any-return]

    def _until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + self.limit
        while not self._asked(is_so, self.patience):
            if time.monotonic() > end:
                raise RuntimeError("they did not come")
            time.sleep(_POLL)

    def _answer(self, ask: Callable[[], Answer], otherwise: Answer) -> Answer:
        try:
            return self._asked(ask, self.patience)
        except Silent:
            pass
        except Exception:  # of which torch says much, so that nobody asks again
            self._is_gone()
        return otherwise

    def _silent(self) -> Silent:
        host, port = _address()
        self.lost = (
            f"the rendezvous at {host}:{port}, in the process of {_whose()}, does not answer, so "
            f"that rank {self.rank} stops: look at that machine, and start all ranks again"
        )
        return Silent(self.lost)

    def _is_gone(self) -> None:
        host, port = _address()
        self.lost = (
            f"{_whose()} has ended, and with it the rendezvous at {host}:{port}, so that rank "
            f"{self.rank} stops: look at what {_whose()} said, and start all ranks again"
        )


def _whose() -> str:
    return "torchrun" if os.environ.get(_OF_AGENT) == str(True) else "rank 0"


def _address() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
