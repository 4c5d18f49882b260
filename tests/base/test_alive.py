"""Processes that say that they live, and how others tell that they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_plugins.base import alive
from sae_plugins.base.alive import Alive, lives, living, told


@pytest.fixture
def one(tmp_path: Path) -> Alive:
    found = Alive(tmp_path, "one")
    found.begin(doing="this")
    return found


def test_it_lives_until_it_ends(one: Alive, tmp_path: Path) -> None:
    assert living(tmp_path)["one"]["doing"] == "this"
    one.tell(doing="that")
    assert (told(tmp_path, "one") or {})["doing"] == "that"
    one.end(doing="nothing")
    assert not living(tmp_path)
    assert (told(tmp_path, "one") or {})["doing"] == "nothing"


DIE = """
import os, sys
from pathlib import Path
from sae_plugins.base.alive import Alive
Alive(Path(sys.argv[1]), "dead").begin()
os._exit(9)
"""


def test_a_process_of_this_machine_that_was_killed_is_dead_at_once(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", DIE, str(tmp_path)]).returncode == 9
    assert told(tmp_path, "dead") is not None
    assert not lives(tmp_path, "dead")


def test_on_another_machine_it_is_dead_when_it_has_been_silent(one: Alive, tmp_path: Path) -> None:
    one.end()
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"host": "far", "process": os.getpid(), "ended": False}))
    assert lives(tmp_path, "one")
    long_ago = time.time() - alive.DEAD_AFTER - 5
    os.utime(file, (long_ago, long_ago))
    assert not lives(tmp_path, "one")


def test_a_name_is_one_process_s_alone(one: Alive, tmp_path: Path) -> None:
    one.tell(doing="that")
    for _ in range(2):  # whether it lives or has ended
        with pytest.raises(FileExistsError, match="one: it has begun before"):
            Alive(tmp_path, "one").begin(doing="this")
        one.end()
    assert (told(tmp_path, "one") or {})["doing"] == "that"


def test_it_says_again_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "BEAT", 0.05)
    one = Alive(tmp_path, "one")
    one.begin()
    before = (tmp_path / "one.json").stat().st_mtime_ns
    time.sleep(0.3)
    assert (tmp_path / "one.json").stat().st_mtime_ns > before
    one.end()


@pytest.mark.parametrize("beat", [0.01, 100])  # whichever thread writes first
def test_one_that_was_silent_is_asked_what_to_do(
    beat: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive, "BEAT", beat)
    monkeypatch.setattr(alive, "DEAD_AFTER", 0.2)
    held: list[bool] = []
    one = Alive(tmp_path, "one", lambda: held.append(True))
    one.begin()
    one.tell(doing="this")
    assert not held
    with monkeypatch.context() as during:
        during.setattr(alive, "write", full)
        time.sleep(0.3)
    one.tell(doing="that")
    one.end()
    assert held


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_nothing(
    one: Alive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive, "write", full)
    one.tell(doing="that")
    one.end()
    assert (told(tmp_path, "one") or {})["doing"] == "this", "what it said last"


def test_who_may_only_look_sees_what_lives(
    one: Alive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda *_: (_ for _ in ()).throw(PermissionError()))
    assert set(living(tmp_path)) == {"one"}
    one.end()


def test_in_another_container_of_this_name_it_is_not_known_by_its_number(
    one: Alive, tmp_path: Path
) -> None:
    one.end()
    found = told(tmp_path, "one")
    assert found is not None
    gone = subprocess.Popen(["true"])
    gone.wait()
    there = {**found, "ended": False, "process": gone.pid}
    (tmp_path / "one.json").write_text(json.dumps(there))
    assert not lives(tmp_path, "one")
    (tmp_path / "one.json").write_text(json.dumps({**there, "place": "another"}))
    assert lives(tmp_path, "one")


def test_what_has_vanished_is_not_written_again(one: Alive, tmp_path: Path) -> None:
    one.vanish()
    one.tell()  # as a beat that had begun
    assert not (tmp_path / "one.json").exists()
