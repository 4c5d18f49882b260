"""Several ranks on this machine, forked from this process: what tests of them start with."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any, TypeVar

Result = TypeVar("Result")

LIMIT = 60.0
"""Seconds in which ranks must have done what they were forked for."""


class Crashed(Exception):
    """A rank ended without a result; the message is its traceback, or its exit code."""


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
    for rank, outcome in enumerate(found):
        if isinstance(outcome, Crashed):
            raise Crashed(f"rank {rank}: {outcome}")
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

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    fork = get_context("fork")
    processes, results = [], []
    for rank in range(size):
        there, here = fork.Pipe(duplex=False)
        variables = {
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
        process = fork.Process(target=_rank, args=(here, act, variables))
        process.start()
        here.close()
        processes.append(process)
        results.append(there)
    started([process.pid or 0 for process in processes])
    try:
        return [
            _outcome(process, there, limit)
            for process, there in zip(processes, results, strict=True)
        ]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _outcome(process: Any, there: Any, limit: float) -> Any:
    wait([there, process.sentinel], limit)
    if there.poll():
        try:
            is_result, found = there.recv()
        except EOFError:
            pass
        else:
            return found if is_result else Crashed(found)
    elif not wait([process.sentinel], 0):
        return Crashed(f"it did not end within {limit:g} s")
    process.join()
    return Crashed(f"it ended with exit code {process.exitcode}")


def _rank(here: Any, act: Callable[[], Any], variables: dict[str, str]) -> None:
    import torch

    from sae_plugins.base import ranks

    os.environ.update(variables)
    torch.set_num_threads(1)
    ranks.forget()
    try:
        here.send((True, act()))
    except BaseException:
        here.send((False, traceback.format_exc()))
    finally:
        here.close()
        os._exit(0)
