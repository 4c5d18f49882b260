"""The store at which ranks meet may freeze, be gone, or have what earlier ranks have left."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any, NamedTuple

import pytest

from sae_plugins.base import ranks as module
from sae_plugins.base import rendezvous
from sae_plugins.base.ranks import RankError, Ranks, forget, join
from sae_plugins.framework.forked import Crashed, on_ranks, outcomes


class Host(NamedTuple):
    """A process that has a store, as torchrun's has on another machine."""

    process: Any
    port: int

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(0.1)


def serve(pipe: Any) -> None:
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    time.sleep(600)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(module, "_GRACE", 0.5)
    monkeypatch.setattr(rendezvous, "_BEAT", 0.5)
    fork = get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=serve, args=(there,))
    process.start()
    yield Host(process, here.recv())
    process.kill()
    process.join()


def before(host: Host) -> None:
    host.freeze()
    join(1)


def while_meeting(host: Host) -> None:
    if os.environ["RANK"] == "1":
        time.sleep(0.5)
        host.freeze()
    join(1)


def while_waiting(host: Host) -> None:
    here = join(1)
    with here.ending():
        if here.rank:
            host.freeze()
            time.sleep(2)
        here.patiently()


def when_one_fails(host: Host) -> None:
    here = join(1)
    with here.ending():
        if here.rank:
            host.freeze()
            raise RankError("its own reason")
        here.agree(False)


@pytest.mark.parametrize(
    "use",
    [before, *(pytest.param(u, marks=pytest.mark.ci) for u in (while_meeting, while_waiting))],
)
def test_a_store_that_is_frozen_is_named(use: Callable[[Host], None], host: Host) -> None:
    begun = time.monotonic()
    for rank, said in enumerate(on_ranks(2, lambda: errors(use, host), 20)):
        assert said == (
            f"the rendezvous at 127.0.0.1:{host.port}, in the process of torchrun, does not "
            f"answer, so that rank {rank} stops: look at that machine, and start all ranks again"
        )
    assert time.monotonic() - begun < 8


def errors(use: Callable[[Host], None], host: Host) -> str:
    os.environ["MASTER_PORT"] = str(host.port)
    with pytest.raises(RankError) as caught:
        use(host)
    return str(caught.value)


def test_who_fails_says_why_whether_the_store_answers_or_not(host: Host) -> None:
    first, second = on_ranks(2, lambda: errors(when_one_fails, host), 20)
    assert "the rendezvous at " in first
    assert second == "its own reason"


def test_a_frozen_store_stops_nobody_who_asks_nothing(host: Host) -> None:
    def act() -> list[Any]:
        os.environ["MASTER_PORT"] = str(host.port)
        here = join(1)
        with here.ending():
            here.agree(False)
            if here.rank:
                host.freeze()
            return [here.all(here.rank), here.agree(False)]

    assert on_ranks(2, act, 20) == [[[0, 1], [False]]] * 2


@pytest.mark.parametrize("who", [0, pytest.param(1, marks=pytest.mark.ci)])
def test_under_srun_the_store_ends_with_rank_0(who: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def act() -> tuple[str, ...]:
        os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="False")
        here = join(5)
        here.agree(False)
        if here.rank == who:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(RankError) as caught:
            here.agree(False)
        return tuple(caught.value.args)

    found = [told for told in outcomes(3, act, 20) if not isinstance(told, Crashed)]
    if who == 1:
        assert found == [("rank 1 has died, so that the training stops",), ()]
        return
    for rank, told in zip((1, 2), found, strict=True):
        assert told == (
            f"rank 0 has ended, and with it the rendezvous at 127.0.0.1:{port}, so that rank "
            f"{rank} stops: look at what rank 0 said, and start all ranks again",
        )


def test_a_start_is_told_from_the_one_before_however_often_torchrun_says_it_was() -> None:
    """Its processes count by themselves: one that did not fail has started nothing again."""

    def act() -> list[Any]:
        found = []
        for start in range(3):
            here = join(10)
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(start * here.rank)
            found.append(here.all((start, here.rank)))
            here._leave()
            forget()
        return found

    wanted = [[(start, rank) for rank in range(3)] for start in range(3)]
    assert on_ranks(3, act, 30) == [wanted] * 3


def test_who_greeted_and_died_is_not_waited_for() -> None:
    def act() -> str:
        here = Ranks(*module.started(), 2)
        if here.rank:
            here._at.connect()
            here._at._whole.set("hello/1", "somebody's who is no more")
            time.sleep(0.3)
        else:
            time.sleep(0.1)
        here.meet()
        return str(here.first("met"))

    assert on_ranks(2, act, 20) == ["met"] * 2
