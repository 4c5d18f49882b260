"""What tasks tell each other in files, and that no two of them do the same."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sae_plugins.study.told import Report, Told, claimed, forget, living, reports


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


def test_claims_are_forgotten_where_nothing_is_at_work(tmp_path: Path) -> None:
    with task(tmp_path, "one") as one:
        one.claim(["a"])
        forget(tmp_path)
        assert claimed(tmp_path, ["a"]) == {"a"}
    forget(tmp_path)
    assert not list(tmp_path.glob("tasks/claims/*"))


def test_what_cannot_be_read_is_no_report(tmp_path: Path) -> None:
    with task(tmp_path, "one"):
        (tmp_path / "tasks/torn.json").write_text('{"about": "t')
        (tmp_path / "tasks/other.json").write_text("[1]")
        assert set(reports(tmp_path)) == set(living(tmp_path)) == {"one"}
