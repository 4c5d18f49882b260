"""Ranks of which one is killed, stopped, told to end or fails, anywhere, go on as if it had not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults import contents
from ranked import HAPPENED, TINY, Fault, Said, train, trained

from sae_plugins.base import ranks
from sae_plugins.entrypoints.main import main

KINDS = ("TERM", "KILL", "STOP", "exception")
RUN, WHOLE = "run", "whole"
COMMAND = [*TINY, "--data_shards", "4", "--checkpoint_every", "2"]
"""7 steps with checkpoints after 2, 4 and 6, of which the newest two stay."""
LIMIT = {"KILL": "8", "STOP": "8"}
"""Seconds that ranks wait for one that will not come."""


class Point(NamedTuple):
    """A fault, on how many ranks, and on how many the run goes on."""

    fault: Fault
    ranks: int
    then: int


def points() -> Iterator[Point]:
    """100 of them: each kind of fault 25 times, by rank 0 and by the last of 2 and of 4."""
    in_the_step = [
        *(("step", n) for n in (1, 3, 7)),
        *(("gather", n) for n in (2, 3, 9)),
        *(("message", n) for n in (1, 2, 5)),
        *(("exchange", n) for n in (4, 8, 10, 11)),
    ]
    at_files = [(0, 6), (0, 14), (0, 19), (0, 23), (0, 24), (0, 60), (0, 70), (0, 100), (0, 115)]
    at_files += [(1, 3), (1, 4), (1, 8)]
    assert len(in_the_step) + len(at_files) == 25
    places = product(KINDS, [*in_the_step, *at_files])
    for number, (kind, place) in enumerate(places, start=1):
        is_file = isinstance(place[0], int)
        is_last = place[0] if is_file else (number + KINDS.index(kind)) % 2
        size = (2, 4, 2)[number % 3]
        where = "file" if is_file else str(place[0])
        fault = Fault(kind, where, place[1], (size - 1) * int(is_last))
        yield Point(fault, size, (1, 2, 4)[number // 3 % 3])


POINTS = [*points()]


def go_on(size: int) -> None:
    """Do as a user does whose run has ended too early, and follow the advice."""
    tried = []
    words = ["--resume", RUN]
    while len(tried) < 4:
        found = train(words, size)
        tried.append((words, found))
        first = found[0]
        assert isinstance(first, Said), tried
        if first.code == 0 or "is finished: there is nothing to go on with" in first.err:
            return
        assert first.code == 2, tried
        words = [*COMMAND, "--output_path", RUN, *(["--overwrite"] * ("--overwrite" in first.err))]
    raise AssertionError(tried)


def check(point: Point, wanted: dict[str, Any]) -> None:
    """Have the fault happen, go on, and compare all files."""
    shutil.rmtree(RUN, ignore_errors=True)
    fault = point.fault
    limit = ["--rank_timeout", LIMIT.get(fault.kind, "60")]
    found = train([*COMMAND, *limit, "--output_path", RUN], point.ranks, fault)
    assert Path(HAPPENED).exists(), (point, found)
    codes = [said.code if isinstance(said, Said) else said for said in found]
    assert not any("did not end" in str(code) for code in codes), (point, found)  # it hangs
    if codes[0] != 0:
        go_on(point.then)
    got = contents(Path(RUN))
    # the records of a training that ended before its first checkpoint stay
    got = {name: data for name, data in got.items() if not name.startswith("unfinished-")}
    differ = [name for name in {**got, **wanted} if got.get(name) != wanted.get(name)]
    assert got == wanted, (point, differ, found)


@pytest.fixture
def wanted(tiny_world: Any, sketched: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What one rank leaves that nothing befalls."""
    monkeypatch.setattr(ranks, "_GRACE", 1.0)
    assert main(["train", *COMMAND, "--output_path", "warm"]) == 0  # what is imported late
    found = trained(COMMAND, 1, RUN)
    Path(RUN).rename(WHOLE)
    return found


def test_the_points_are_many() -> None:
    assert len({*POINTS}) == 100
    assert {(p.ranks, p.then) for p in POINTS} == {*product((2, 4), (1, 2, 4))}
    for kind in KINDS:
        of_it = [point for point in POINTS if point.fault.kind == kind]
        assert len(of_it) == 25
        assert {p.fault.rank for p in of_it} == {0, 1, 3}


@pytest.mark.ci
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "STOP"])  # which waits
def test_some_points(kind: str, wanted: dict[str, Any]) -> None:
    for point in [point for point in POINTS if point.fault.kind == kind][3::12]:
        check(point, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_every_point(kind: str, part: int, wanted: dict[str, Any]) -> None:
    for point in [point for point in POINTS if point.fault.kind == kind][part::5]:
        check(point, wanted)
