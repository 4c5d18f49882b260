"""Ranks agree, exchange rows and values, say once what is wrong, and never wait for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sae_plugins.base import ranks as module
from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import RankError, Ranks, join
from sae_plugins.base.started import restarts, started
from sae_plugins.framework.forked import Crashed, on_ranks, outcomes

ALONE = Ranks()
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"WORLD_SIZE": "2"}, (0, 2)),
        ({**SRUN, "MASTER_ADDR": "node1", "SLURM_STEP_ID": "0"}, (1, 4)),
        ({**SRUN, "MASTER_ADDR": "node1"}, (0, 1)),  # a batch script
        ({**SRUN, "SLURM_STEP_ID": "0"}, (0, 1)),  # srun of one run for each task
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_NTASKS": "1", "MASTER_ADDR": "here"}, (1, 2)),
    ],
)
def test_who_was_started(
    variables: dict[str, str], found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurms = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", *slurms):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started() == found


def test_restarts_are_those_of_torchrun_and_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert restarts() == 0
    for count, name in enumerate(names, start=1):
        monkeypatch.setenv(name, str(count))
    assert restarts() == 3


def test_a_single_rank_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_reduce", "all_gather_object", "all_gather_into_tensor", "barrier"):
        monkeypatch.setattr(torch.distributed, name, None)
    rows = torch.arange(6).reshape(2, 3)
    assert ALONE.writes
    assert ALONE.agree(True, False) == [True, False]
    assert ALONE.all("x") == ["x"]
    assert ALONE.first("x") == "x"
    assert ALONE.whole(rows) is rows
    ALONE.same("it", {"a": 1})
    ALONE.patiently()
    with pytest.raises(PluginError, match="as it is"), ALONE.together(), ALONE.ending():
        raise PluginError("as it is")
    assert join() is module.ranks()


SHAPES = [(2, 3), (0, 3), (1,), (5,), (3, 0), (2, 1, 7)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]


def rows_of(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    draw = torch.Generator().manual_seed(rank)
    return (torch.randn(shape, generator=draw) * 3).to(dtype)


def exchange() -> dict[str, Any]:
    """Everything that does not fail, on three ranks that meet once."""
    here = join(30)
    found: dict[str, Any] = {"rank": (here.rank, here.size, here.writes)}
    found["agree"] = here.agree(here.rank == 1, here.rank == 5, True)
    found["all"] = here.all({"of": here.rank, "nothing": None})
    found["first"] = here.first(f"of {here.rank}")
    found["whole"] = [
        torch.equal(
            here.whole(rows_of(here.rank, shape, dtype)),
            torch.cat([rows_of(rank, shape, dtype) for rank in range(here.size)]),
        )
        for shape in SHAPES
        for dtype in DTYPES
    ]
    strided = torch.arange(6.0).reshape(2, 3).T + here.rank
    found["strided"] = here.whole(strided)[:, 0].tolist()
    here.same("settings", {"a": 1, "b": [1, 2]})
    here.patiently()
    with here.together():
        pass
    with here.ending():
        return found


def test_three_ranks_exchange_what_they_have() -> None:
    everybody = on_ranks(3, exchange)
    for rank, found in enumerate(everybody):
        assert found["rank"] == (rank, 3, rank == 0)
        assert found["agree"] == [True, False, True]
        assert found["all"] == [{"of": other, "nothing": None} for other in range(3)]
        assert found["first"] == "of 0"
        assert all(found["whole"])
        assert found["strided"] == [0, 1, 2, 1, 2, 3, 2, 3, 4]


def errors(*acts: Callable[[Ranks], None], size: int = 2) -> list[tuple[tuple[str, ...], int]]:
    """What each rank raises: its sentences, and its exit code; one act after the other."""

    def act() -> list[tuple[tuple[str, ...], int]]:
        here, found = join(30), []
        for one in acts:
            try:
                one(here)
            except (RankError, PluginError) as error:
                found.append((error.args, error.exit_code))
        return found

    return [list(told) for told in zip(*on_ranks(size, act), strict=True)]


def fails(*ranks: int, text: str = "rank {} is wrong") -> Callable[[Ranks], None]:
    def act(here: Ranks) -> None:
        with here.together():
            if here.rank in ranks:
                raise PluginError(text.format(here.rank), "and more")

    return act


def differ(here: Ranks) -> None:
    here.same("settings", {"same": 1, "--seed": here.rank, "long": "x" * 99 * here.rank})


def test_what_is_wrong_is_said_once_and_by_rank_0() -> None:
    same, one, first, several, facts = errors(
        fails(0, 1, 2, text="no such model"), fails(2), fails(0), fails(1, 2), differ, size=3
    )
    assert same == [(("no such model", "and more"), 2), ((), 2), ((), 2)]
    assert one == [(("rank 2: rank 2 is wrong", "rank 2: and more"), 2), ((), 2), ((), 2)]
    assert first[0] == (("rank 0: rank 0 is wrong", "rank 0: and more"), 2)
    assert several[0][0] == (
        *("rank 1: rank 1 is wrong", "ranks 1, 2: and more", "rank 2: rank 2 is wrong"),
    )
    (sentence,), code = facts[0]
    assert code == 2
    assert sentence == (
        "settings must be the same on all ranks: --seed is 0 on rank 0 and 1 on rank 1; "
        f"long is  on rank 0 and {'x' * 57}... on rank 1"
    )
    assert [told for told, _ in facts[1:]] == [(), ()]


@pytest.mark.parametrize(
    ("gpus", "hosts", "who"),
    [
        ("ABA", "xxx", "ranks 0, 2"),
        ("AAA", "yxx", "ranks 1, 2"),
        ("ABC", "xxx", None),
        ("AAA", "xyz", None),
        ("---", "xxx", None),
    ],
)
def test_two_ranks_have_no_gpu_in_common(gpus: str, hosts: str, who: str | None) -> None:
    def act() -> tuple[Any, ...]:
        rank = int(os.environ["RANK"])
        module.identity = lambda: None if gpus[rank] == "-" else f"GPU-{gpus[rank]}"
        module.socket.gethostname = lambda: hosts[rank]
        try:
            join(10)
        except RankError as error:
            return (error.exit_code, *error.args)
        return ("they met",)

    said = on_ranks(3, act)
    if who is None:
        assert said == [("they met",)] * 3
        return
    assert said[1:] == [(2,), (2,)]
    code, sentence = said[0]
    assert code == 2
    assert sentence.startswith(f"{who} have the same GPU, GPU-A of x: start one for each GPU, and")


def test_all_ranks_know_that_torchrun_has_started_some_of_them_again() -> None:
    def act() -> int:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]
        return join(10).restarts

    assert on_ranks(2, act) == [1, 1]
    assert ALONE.restarts == restarts()


def ends(fault: Callable[[], None], who: int) -> Callable[[], tuple[str, int, float]]:
    """One rank ends by a fault between two messages; what the others raise, and after how long."""

    def act() -> tuple[str, int, float]:
        here = join(2)
        begun = time.monotonic()
        try:
            with here.ending():
                for number in range(3):
                    here.agree(False)
                    if here.rank == who and number == 1:
                        fault()
        except (RankError, KeyboardInterrupt, ValueError) as error:
            told = f"{type(error).__name__}: {error}"
            return told, getattr(error, "exit_code", 1), time.monotonic() - begun
        return "nothing", 0, 0.0

    return act


def interrupt() -> None:
    raise KeyboardInterrupt


def crash() -> None:
    raise ValueError("no\nway")


def told(found: Any) -> Any:
    return found if isinstance(found, Crashed) else found[:2]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 1.0)


@pytest.mark.parametrize(
    ("who", "size", "speaker"),
    [(1, 2, 0), pytest.param(0, 3, 1, marks=pytest.mark.ci)],
)
def test_a_rank_that_was_killed_is_named_by_the_first_that_lives(
    who: int, size: int, speaker: int
) -> None:
    found = outcomes(size, ends(lambda: os.kill(os.getpid(), signal.SIGKILL), who), 30)
    assert str(found[who]) == "it ended with exit code -9"
    sentence = f"RankError: rank {who} has died, so that the training stops"
    for rank in {*range(size)} - {who}:
        assert told(found[rank]) == (sentence if rank == speaker else "RankError: ", 1)


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_after_the_limit() -> None:
    found = outcomes(2, ends(lambda: os.kill(os.getpid(), signal.SIGSTOP), 1), 15)
    sentence = "RankError: rank 1 did not answer within 2 s, so that the training stops"
    assert told(found[0]) == (sentence, 1)
    assert "did not end" in str(found[1])


def test_the_reason_of_a_rank_that_fails_is_told_by_rank_0_alone() -> None:
    found = outcomes(2, ends(crash, 1), 30)
    assert told(found[0]) == ("RankError: rank 1 stopped: ValueError: no\nway", 1)
    assert told(found[1]) == ("RankError: ", 1)


@pytest.mark.ci
def test_a_rank_0_that_fails_speaks_for_itself() -> None:
    found = outcomes(2, ends(crash, 0), 30)
    assert told(found[0]) == ("ValueError: no\nway", 1)
    assert told(found[1]) == ("RankError: rank 0 stopped: ValueError: no\nway", 1)


@pytest.mark.parametrize("who", [0, pytest.param(1, marks=pytest.mark.ci)])
def test_an_interruption_of_one_is_one_of_all(who: int) -> None:
    speaks = [("KeyboardInterrupt: ", 1), ("RankError: rank 1 stopped: interrupted", 130)]
    found = outcomes(2, ends(interrupt, who), 30)
    assert [told(one) for one in found] == [speaks[who], ("RankError: ", 130)]


@pytest.mark.ci
def test_one_that_is_started_alone_names_who_does_not_come() -> None:
    def act() -> str:
        os.environ["WORLD_SIZE"] = "3"
        try:
            join(1)
        except RankError as error:
            return str(error)
        return "they came"

    (said,) = on_ranks(1, act)
    assert said.startswith("rank 0 waited 1 s for ranks 1, 2 (")
    assert said.endswith("look at what they said, or give --rank_timeout more seconds")
