"""What tasks tell each other in files, and that no two of them do the same."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.study import told
from sae_plugins.study.told import Report, Told, claimed, living, reports, tidy


def task(folder: Path, name: str) -> Told:
    return Told(folder, name, Report(name), None)


def test_what_a_living_task_has_no_other_one_gets_until_it_ends(tmp_path: Path) -> None:
    with task(tmp_path, "first") as first:
        assert first.claim(["a", "b"]) == ["a", "b"]
        assert first.claim(["a"]) == ["a"]  # it has it already
        with task(tmp_path, "second") as second:
            assert second.claim(["b", "c"]) == ["c"]
            assert set(living(tmp_path)) == {"first", "second"}
            assert claimed(tmp_path, ["a", "b", "c", "d"]) == {"a", "b", "c"}
    assert not living(tmp_path)
    with task(tmp_path, "third") as third:
        assert third.claim(["a", "c"]) == ["a", "c"]


DIE = """
import os, sys
from pathlib import Path
from sae_plugins.study.told import Report, Told
with Told(Path(sys.argv[1]), "dead", Report("dead"), None) as told:
    assert told.claim(["a"]) == ["a"]
    os._exit(9)
"""


def test_one_that_has_died_has_one_heir_however_many_ask(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", DIE, str(tmp_path)]).returncode == 9
    assert not reports(tmp_path)["dead"].ended
    heirs: list[str] = []
    ready, over = threading.Barrier(8), threading.Barrier(8)

    def ask(number: int) -> None:
        with task(tmp_path, f"heir{number}") as heir:
            ready.wait()
            heirs.extend(heir.claim(["a"]) and [heir.name])
            over.wait()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heirs) == 1


@pytest.mark.parametrize("has_heir", [False, True])
def test_a_process_that_was_held_ends_if_another_one_does_its_work(
    has_heir: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    with task(tmp_path, "held") as held:
        held.claim(["a"])
    with task(tmp_path, "heir") as heir:
        assert heir.claim(["a"] if has_heir else ["b"])
    monkeypatch.setattr("os._exit", lambda code: ended.append(code))
    held._was_held()
    assert ended == [1] * has_heir


def test_what_tasks_leave_goes_when_they_have_ended(tmp_path: Path) -> None:
    tidy(tmp_path)
    assert not list(tmp_path.iterdir())
    with task(tmp_path, "one") as one, task(tmp_path, "other") as other:
        one.claim(["a"])
        other.claim(["b"])
        other.__exit__()
        tidy(tmp_path)
        assert claimed(tmp_path, ["a", "b"]) == {"a"}
        assert len(list(tmp_path.glob("tasks/claims/*"))) == 1
        assert set(reports(tmp_path)) == {"one"}
    tidy(tmp_path)
    assert not list(tmp_path.glob("tasks/claims/*"))
    assert not reports(tmp_path)


def test_the_latest_costs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "_KEPT", 2)
    for number in range(4):
        with task(tmp_path, f"task{number}") as one:
            one.note(costs=number)
        os.utime(tmp_path / f"tasks/task{number}.json", (1_000_000, 1_000_000 + number))
    (tmp_path / "tasks/torn.json").write_text('{"about": "t')
    tidy(tmp_path)
    assert {path.name for path in tmp_path.glob("tasks/*.json")} == {"task2.json", "task3.json"}


@pytest.mark.parametrize("heirs", [0, 1])
@pytest.mark.parametrize("who_is_disturbed", ["who tidies", "who claims"])
def test_nothing_is_lost_to_who_tidies_at_any_moment(
    who_is_disturbed: str, heirs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change and every look of the one happens between two of the other."""
    for moment in range(1, 100):
        folder = tmp_path / str(moment)
        for number in range(heirs + 1):
            with task(folder, f"dead{number}") as dead:
                assert dead.claim(["a"])
        with ExitStack() as stack:
            has: list[str] = []

            def claim(name: str, folder: Path = folder, stack: ExitStack = stack) -> list[str]:
                return stack.enter_context(task(folder, name)).claim(["a"])

            acts = [partial(tidy, folder), lambda has=has, claim=claim: has.extend(claim("one"))]
            disturbed, other = acts if who_is_disturbed == "who tidies" else acts[::-1]
            with monkeypatch.context() as during:
                seen = between(during, moment, other)
                disturbed()
            if len(seen) < moment:  # there are no more
                break
            also = claim("third")
            assert bool(has) != bool(also), f"{has} and {also}, at moment {moment}"
    assert 5 < moment < 99


def between(during: pytest.MonkeyPatch, moment: int, act: Callable[[], None]) -> list[int]:
    """Have something done before so manyth change of a file, or look at one; all of these."""
    seen: list[int] = []

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(0)
            if len(seen) == moment:
                act()
            return function(*args, **kwargs)

        return call

    of_files = [(os, "link"), (os, "unlink"), (os, "scandir"), (io, "open")]
    for owner, name in (*of_files, *((Path, name) for name in ("unlink", "read_text", "glob"))):
        during.setattr(owner, name, before(getattr(owner, name)))
    return seen


def test_what_cannot_be_read_is_no_report(tmp_path: Path) -> None:
    with task(tmp_path, "one"):
        (tmp_path / "tasks/torn.json").write_text('{"about": "t')
        (tmp_path / "tasks/other.json").write_text("[1]")
        assert set(reports(tmp_path)) == set(living(tmp_path)) == {"one"}
