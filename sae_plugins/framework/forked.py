"""Several ranks on this machine, forked from this process: what tests of them start with."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import IO, Any, TypeVar

Result = TypeVar("Result")

LIMIT = 60.0
"""Seconds in which ranks must have done what they were forked for."""


class Crashed(Exception):
    """A rank ended without a result; the message says how, and where it stood."""


def on_ranks(size: int, act: Callable[[], Result], limit: float = LIMIT) -> list[Result]:
    """What `act` returns on each of so many ranks, which meet when it asks for it.

    The ranks share what this process has imported, so that they start in milliseconds. They have
    one thread each. What `act` returns must be picklable.

    Args:
        size: how many ranks.
        act: what each of them does.
        limit: seconds in which all must have done it.

    Raises:
        Crashed: one of them raised, was killed, or took longer.
    """
    found = outcomes(size, act, limit)
    said = [f"rank {rank}: {each}" for rank, each in enumerate(found) if isinstance(each, Crashed)]
    if said:
        raise Crashed("\n".join(said))
    return [outcome for outcome in found if not isinstance(outcome, Crashed)]


def outcomes(
    size: int,
    act: Callable[[], Result],
    limit: float = LIMIT,
    started: Callable[[list[int]], None] = lambda ids: None,
    **environment: str,
) -> list[Result | Crashed]:
    """As `on_ranks`, with the failures among the results.

    Args:
        size: how many ranks.
        act: what each of them does.
        limit: seconds in which all must have done it.
        started: told the numbers of the processes.
        environment: variables that they have besides torchrun's.
    """
    from torch._C._distributed_c10d import TCPStore

    with ExitStack() as files:
        forked = [_Forked(act, files.enter_context(tempfile.TemporaryFile())) for _ in range(size)]
        started([each.process.pid or 0 for each in forked])
        try:
            # not before: its thread may hold a lock of the C library's while a rank is forked
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            for rank, each in enumerate(forked):
                each.here.send(
                    {
                        **environment,
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": str(size),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(store.port),
                        # this process has the store, as torchrun has
                        "TORCHELASTIC_USE_AGENT_STORE": "True",
                        "CUDA_VISIBLE_DEVICES": "",  # which a forked process cannot use
                    }
                )
            return [each.outcome(limit) for each in forked]
        finally:
            for each in forked:
                each.process.kill()
                each.process.join()


class _Forked:
    """A rank, as the process that forks it sees it."""

    def __init__(self, act: Callable[[], Any], where: IO[bytes]) -> None:
        fork = get_context("fork")
        self.where = where
        self.here, there = fork.Pipe()
        self.process = fork.Process(target=_rank, args=(there, act, where))
        self.process.start()
        there.close()

    def outcome(self, limit: float) -> Any:
        """What it returned, or how it failed."""
        wait([self.here, self.process.sentinel], limit)
        if self.here.poll():
            try:
                is_result, found = self.here.recv()
            except EOFError:
                pass
            else:
                return found if is_result else Crashed(found)
        elif not wait([self.process.sentinel], 0):
            return Crashed(f"it did not end within {limit:g} s\n{self._stack()}")
        self.process.join()
        return Crashed(f"it ended with exit code {self.process.exitcode}")

    def _stack(self) -> str:
        os.kill(self.process.pid or 0, signal.SIGUSR2)
        wait([self.process.sentinel], 0.5)  # which a stopped process lets pass
        self.where.seek(0)
        return self.where.read().decode()


def _rank(here: Any, act: Callable[[], Any], where: IO[bytes]) -> None:
    gc.freeze()  # our process's garbage may wait for its threads, which do not run here
    faulthandler.register(signal.SIGUSR2, where)
    import torch

    from sae_plugins.base import ranks

    os.environ.update(here.recv())
    torch.set_num_threads(1)
    ranks.forget()
    try:
        here.send((True, act()))
    except BaseException:
        here.send((False, traceback.format_exc()))
    finally:
        here.close()
        os._exit(0)
