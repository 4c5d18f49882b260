"""What the process that drives a study does when tasks end, fail, and die."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base import alive
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.study import driver
from sae_plugins.study.driver import run_tasks
from sae_plugins.study.progress import Progress
from sae_plugins.study.tasks import Task
from sae_plugins.study.told import Report, Told


class Heard:
    def __init__(self) -> None:
        self.done, self.said = 0.0, list[str]()

    def stage(self, text: str) -> None: ...
    def expect(self, shares: int) -> None: ...

    def advance(self, share: float) -> None:
        self.done += share

    def say(self, text: str) -> None:
        self.said.append(text)


class Dying(Executor):
    """An executor in which the first so many tasks die with their process, in the middle."""

    def __init__(self, deaths: int, after: Callable[[int], int] = lambda death: 0) -> None:
        self.deaths, self.after, self.handed = deaths, after, 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        self.handed += 1
        if self.handed <= self.deaths:
            _, task, name = args
            dead = Told(task.folder, name, Report(task.about, share=self.after(self.handed)), None)
            with dead:
                dead.claim(task.claims)
            future.set_exception(RuntimeError("node 7 is gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_POLL", 0)


def work(task: Task, progress: Progress) -> dict[str, Any]:
    progress.stage(task.about)
    progress.advance(len(task.saes))
    (task.folder / "did").open("a").write(f"{task.about} {' '.join(task.saes)}\n")
    return {"costs": len(task.saes)}


def task(folder: Path, *saes: str, suites: tuple[str, ...] = ()) -> Task:
    return Task("", folder, "toy", 0, saes, suites)


def did(folder: Path) -> list[str]:
    return (folder / "did").read_text().splitlines()


@pytest.mark.parametrize("executor", [None, Dying(0)])
def test_what_follows_from_a_task_is_done_after_it(
    executor: Executor | None, tmp_path: Path
) -> None:
    heard = Heard()

    def then(done: Task) -> list[Task]:
        return [] if done.suites else [task(tmp_path, *done.saes, suites=("core",))]

    run_tasks(work, [task(tmp_path, "a", "b"), task(tmp_path, "c")], executor, heard, then)
    assert sorted(did(tmp_path)) == [
        "toy, seed 0: evaluating by core a b",
        "toy, seed 0: evaluating by core c",
        "toy, seed 0: training a b",
        "toy, seed 0: training c",
    ]
    assert heard.done == 6


def test_a_task_that_died_is_tried_again_and_what_it_had_done_is_not_counted(
    tmp_path: Path,
) -> None:
    heard = Heard()
    run_tasks(work, [task(tmp_path, "a")], Dying(2), heard)
    assert did(tmp_path) == ["toy, seed 0: training a"]
    assert heard.done == 1
    assert len(heard.said) == 2
    assert "node 7 is gone" in heard.said[0]


def test_one_that_dies_at_the_same_place_again_and_again_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(SaePluginsError, match=r"node 7 is gone.*3 times at the same place"):
        run_tasks(work, [task(tmp_path, "a")], Dying(9), Heard())


def test_one_that_gets_on_may_die_more_often(tmp_path: Path) -> None:
    run_tasks(work, [task(tmp_path, "a")], Dying(7, after=lambda death: death), Heard())
    assert did(tmp_path) == ["toy, seed 0: training a"]


def fail(task: Task, progress: Progress) -> dict[str, Any]:
    class Unknown(Exception):  # which no other process can read
        pass

    raise Unknown("something is wrong") if task.saes == ("a",) else OSError("the disk is full")


@pytest.mark.parametrize("executor", [None, Dying(0)])
@pytest.mark.parametrize(("sae", "error"), [("a", SaePluginsError), ("b", OSError)])
def test_what_goes_wrong_is_raised(
    sae: str, error: type[Exception], executor: Executor | None, tmp_path: Path
) -> None:
    with pytest.raises(error, match=r"something is wrong|the disk is full"):
        run_tasks(fail, [task(tmp_path, sae)], executor, Heard())


def fault(task: Task, progress: Progress) -> dict[str, Any]:
    """Work on a node whose disk is full twice."""
    tried = task.folder / "tried"
    with tried.open("a") as file:
        file.write("x")
    if len(tried.read_text()) <= 2:
        raise SaePluginsError("a.json could not be written") from OSError(28, "No space left")
    return work(task, progress)


def test_a_fault_of_the_machine_is_the_death_of_the_task(tmp_path: Path) -> None:
    heard = Heard()
    run_tasks(fault, [task(tmp_path, "a")], Dying(0), heard)
    assert did(tmp_path) == ["toy, seed 0: training a"]
    assert len(heard.said) == 2
    assert (
        f"died ({socket.gethostname()} has a fault: a.json could not be written)" in heard.said[0]
    )


def test_a_fault_in_this_very_process_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(SaePluginsError, match="has a fault: a"):
        run_tasks(fault, [task(tmp_path, "a")], None, Heard())


def test_a_folder_that_takes_no_files_on_a_node_is_a_fault_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, tried = alive.Alive.begin, list[Any]()

    def refused(one: alive.Alive, **told: Any) -> None:
        tried.append(one)
        if len(tried) == 1:
            raise PermissionError(13, "Permission denied")
        begin(one, **told)

    monkeypatch.setattr(alive.Alive, "begin", refused)
    heard = Heard()
    run_tasks(work, [task(tmp_path, "a")], Dying(0), heard)
    assert "takes no files on" in heard.said[0]
    assert did(tmp_path) == ["toy, seed 0: training a"]


def evaluation(done: Task) -> list[Task]:
    return [] if done.suites else [replace(done, suites=("core", "scr"))]


@pytest.mark.parametrize("executor", [None, Dying(0)])
def test_what_a_task_of_another_driver_has_is_done_after_it(
    executor: Executor | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, looks = Heard(), list[float]()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            theirs.__exit__()

    monkeypatch.setattr(driver.time, "sleep", sleep)
    with Told(tmp_path, "theirs", Report(""), None) as theirs:
        theirs.claim(["toy/a/", "toy/c/core"])  # of the evaluation of c, it has one part
        run_tasks(work, [task(tmp_path, "a", "c")], executor, heard, evaluation)
    assert sorted(did(tmp_path)) == [
        "toy, seed 0: evaluating by core, scr a",
        "toy, seed 0: evaluating by core, scr c",
        "toy, seed 0: training a",
        "toy, seed 0: training c",
    ]
    assert heard.done == 4


def test_a_task_that_died_elsewhere_is_tried_again_when_others_take_it_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Far(Dying):
        """Whose first task dies without a word, on another machine."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            if self.handed == 1:
                self.file = tmp_path / "tasks" / f"{args[2]}.json"
                told = json.loads(self.file.read_text())
                self.file.write_text(json.dumps({**told, "place": "far", "ended": False}))
            return future

    executor, looks = Far(1), list[float]()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            os.utime(executor.file, (0, 0))  # silent for so long

    monkeypatch.setattr(driver.time, "sleep", sleep)
    run_tasks(work, [task(tmp_path, "a")], executor, Heard())
    assert did(tmp_path) == ["toy, seed 0: training a"]
    assert executor.handed == 2


def test_a_task_of_whose_death_nobody_tells_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mute(Dying):
        """Slurm without accounting, say."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            return future if self.handed > 1 else Future()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 100, "it waits for ever"

    looks: list[float] = []
    monkeypatch.setattr(driver.time, "sleep", sleep)
    monkeypatch.setattr(driver, "_LOOK", 0, raising=False)
    monkeypatch.setattr(driver, "_SILENT", 0, raising=False)
    heard = Heard()
    run_tasks(work, [task(tmp_path, "a")], Mute(1), heard)
    assert did(tmp_path) == ["toy, seed 0: training a"]
    assert "silent" in heard.said[0]


@pytest.mark.parametrize("is_alive", [False, True])
def test_a_task_that_its_scheduler_begins_again_is_done_once(
    is_alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask takes a worker for dead that is busy, and calls the same function elsewhere."""
    first: list[Told] = []
    looks: list[float] = []

    class Dask(Dying):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            if not first:
                _, task, name = args
                first.append(Told(task.folder, name, Report(task.about), None).__enter__())
                first[0].claim(task.claims)
                if not is_alive:
                    first[0].__exit__()
            future: Future[Any] = Future()
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)
            return future

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if is_alive and len(looks) == 3:
            assert not (tmp_path / "did").exists(), "two do the same"
            first[0].__exit__()

    monkeypatch.setattr(driver.time, "sleep", sleep)
    heard = Heard()
    run_tasks(work, [task(tmp_path, "a")], Dask(0), heard)
    assert did(tmp_path) == ["toy, seed 0: training a"]
    assert len(heard.said) == 1
    assert "(its scheduler began it a second time); it is tried again" in heard.said[0]


def test_what_takes_no_task_is_named(tmp_path: Path) -> None:
    class Full(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("sbatch: error: the partition is down")

    with pytest.raises(SaePluginsError, match=r"seed 0: training could .* the partition is down"):
        run_tasks(work, [task(tmp_path, "a")], Full(), Heard())


class Waiting(Executor):
    """An executor whose tasks do not begin."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.futures.append(Future())
        return self.futures[-1]


def test_interrupted_it_takes_back_what_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver.time, "sleep", interrupt)
    executor = Waiting()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(work, [task(tmp_path, "a"), task(tmp_path, "b")], executor, Heard())
    assert [future.cancelled() for future in executor.futures] == [True, True]
