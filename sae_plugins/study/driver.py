"""From tasks to what they have done: an executor does them, and this process follows."""

from __future__ import annotations

import contextlib
import pickle
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.machine_faults import is_of_machine
from sae_plugins.base.secrets import reason_of
from sae_plugins.study.progress import Overall, Progress
from sae_plugins.study.tasks import Task, Work
from sae_plugins.study.told import Died, Report, Told, claimed, lives, living, new_name, report_of

_POLL = 0.5
"""Seconds between two looks at what tasks tell."""
_LOOK, _SILENT = 10.0, 18
"""Seconds between two looks whether a task lives, and how many may find it dead: an executor may
know more, and this process may have been held together with the task."""
_DEATHS = 3
"""After so many deaths of a task, one after another, which got no further, a study ends."""


def perform(
    work: Work, task: Task, name: str, then: Progress | None = None
) -> Exception | tuple[str, ...]:
    """Do of a task what no other one does, in whichever process this is.

    Returns:
        The SAEs that other tasks have; or what went wrong, which executors would wrap. `Died` is as
        the death of the process.
    """
    report = Report(task.about, saes=() if task.suites else task.saes)
    try:
        with Told(task.folder, name, report, then) as told:
            mine = set(told.claim(task.claims))
            saes = tuple(sae for sae in task.saes if mine.issuperset(task.claims_of(sae)))
            if saes:
                told.note(**work(replace(task, saes=saes), told))
    except Exception as error:
        return _as_told(error)
    return tuple(sae for sae in task.saes if sae not in saes)


def _as_told(error: Exception) -> Exception:
    """An error that another process can read."""
    if is_of_machine(error):
        return Died(f"{socket.gethostname()} has a fault: {reason_of(error)}")
    with contextlib.suppress(Exception):
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    return SaePluginsError(reason_of(error))


@dataclass
class _Attempt:
    """A task that was handed over, once."""

    task: Task
    future: Any
    deaths: int = 0
    furthest: float = 0.0
    """What it had done when it died before."""
    share: float = 0.0
    stage: str = ""
    looked: float = field(default_factory=time.monotonic)
    silent: int = 0

    def is_lost(self, name: str) -> bool:
        """Whether it has begun, and is silent: not every scheduler tells that a job has died."""
        if time.monotonic() - self.looked < _LOOK:
            return False
        self.looked, folder = time.monotonic(), self.task.folder
        is_well = report_of(folder, name) is None or lives(folder, name)
        self.silent = 0 if is_well else self.silent + 1
        return self.silent > _SILENT

    @property
    def known(self) -> dict[str, Any]:
        """What the one in its place is to know of it."""
        return {"deaths": self.deaths, "furthest": self.furthest}

    def listen(self, told: Report | None, progress: Overall) -> None:
        """Hand on what is new."""
        if told is None:
            return
        if told.stage != self.stage:
            progress.stage(told.stage)
        if told.share != self.share:
            progress.advance(told.share - self.share)
        self.stage, self.share = told.stage, told.share


def run_tasks(
    work: Work,
    tasks: Sequence[Task],
    executor: Executor | None,
    progress: Overall,
    then: Callable[[Task], Sequence[Task]] = lambda task: (),
) -> None:
    """Do tasks, and those that follow from each; here, one by one, where there is no executor.

    A task whose process died, or whose machine has a fault, is tried again by an executor, and goes
    on from what it has kept. What tasks of another driver have is done when these have ended, as
    far as they have not done it.

    Raises:
        SaePluginsError: a task dies again and again. What `work` raises is raised here, too.
    """
    if executor is not None:
        _Running(work, executor, progress, then).all(tasks)
        return
    others: list[Task] = []
    for task in tasks:
        done, left = _parts(task, perform(work, task, new_name(task.about), progress))
        run_tasks(work, then(done) if done.saes else (), None, progress)
        others += [left] if left.saes else []
    if others:
        progress.stage("waiting for tasks of another process, which have the rest")
        while any(map(_is_had, others)):
            time.sleep(_POLL)
        run_tasks(work, others, None, progress, then)


@dataclass
class _Running:
    """The tasks that an executor has, and those that are handed to it when others have ended."""

    work: Work
    executor: Executor
    progress: Overall
    then: Callable[[Task], Sequence[Task]]
    attempts: dict[str, _Attempt] = field(default_factory=dict)
    waiting: list[tuple[Callable[[], bool], Task, dict[str, Any]]] = field(default_factory=list)
    """Each with what tells whether it has to wait, and what is known of it."""

    def all(self, tasks: Sequence[Task]) -> None:
        """Do tasks, and those that follow from each."""
        try:
            for task in tasks:
                self._submit(task)
            while self.attempts or self.waiting:
                time.sleep(_POLL)
                for one in [one for one in self.waiting if not one[0]()]:
                    self.waiting.remove(one)
                    self._submit(one[1], **one[2])
                for name, attempt in [*self.attempts.items()]:
                    ended = attempt.future.done()  # before the look, so that nothing is missed
                    attempt.listen(report_of(attempt.task.folder, name), self.progress)
                    if ended:
                        del self.attempts[name]
                        self._follow(name, attempt)
                    elif attempt.is_lost(name):
                        del self.attempts[name]
                        with contextlib.suppress(Exception):
                            attempt.future.cancel()
                        self._again(name, attempt, Died("it is silent"))
        except BaseException as error:
            _leave(self.attempts)
            if isinstance(error, BrokenProcessPool):
                raise SaePluginsError(
                    "a process of the study ended without a word, perhaps for want of memory: try "
                    "a lower --jobs; what is done is kept"
                ) from error
            raise

    def _submit(self, task: Task, **known: Any) -> None:
        name = new_name(task.about)
        try:
            future = self.executor.submit(perform, self.work, task, name)
        except BrokenProcessPool:
            raise
        except Exception as error:  # of Slurm, say
            raise SaePluginsError(
                f"{task.about} could not be handed over ({reason_of(error)}); what is done is kept"
            ) from error
        self.attempts[name] = _Attempt(task, future, **known)

    def _follow(self, name: str, attempt: _Attempt) -> None:
        """Hand over what follows from a task that has ended."""
        try:
            found = attempt.future.result()
        except BrokenProcessPool:
            raise
        except Exception as death:
            found = Died(reason_of(death))
        if isinstance(found, Died):
            self._again(name, attempt, found)
            return
        done, left = _parts(attempt.task, found)
        for task in self.then(done) if done.saes else ():
            self._submit(task)
        if left.saes:
            self.progress.stage(f"{left.about}: waiting for what another process does of it")
            self.waiting.append((partial(_is_had, left), left, attempt.known))

    def _again(self, name: str, attempt: _Attempt, death: Died) -> None:
        """Have a task that died tried again."""
        known = _after(death, attempt, self.progress)
        # to tasks on other machines it is dead, and what it had is free, when it is silent
        self.waiting.append((partial(lives, attempt.task.folder, name), attempt.task, known))


def _parts(task: Task, found: Exception | tuple[str, ...]) -> tuple[Task, Task]:
    """What `perform` has done of a task, and what it has left."""
    if isinstance(found, Exception):
        raise found
    done = tuple(sae for sae in task.saes if sae not in found)
    return replace(task, saes=done), replace(task, saes=found)


def _is_had(task: Task) -> bool:
    """Whether living tasks have any of its SAEs."""
    return bool(claimed(task.folder, task.claims))


def _after(death: Died, attempt: _Attempt, progress: Overall) -> dict[str, Any]:
    """What is known of a task that died, for the one in its place.

    Raises:
        SaePluginsError: it dies again and again.
    """
    further = attempt.share > attempt.furthest
    deaths = 1 if further else attempt.deaths + 1
    said = f"{attempt.task.about} died ({death})"
    if deaths >= _DEATHS:
        raise SaePluginsError(
            f"{said}, {deaths} times at the same place; what is done is kept"
        ) from death
    progress.say(f"{said}; it is tried again, and goes on from what it has kept")
    progress.advance(-attempt.share)
    return {"deaths": deaths, "furthest": max(attempt.share, attempt.furthest)}


def _leave(running: dict[str, _Attempt]) -> None:
    """Take back what has not begun; what runs where this process has no power goes on."""
    for name, attempt in running.items():
        if report_of(attempt.task.folder, name) is None:
            with contextlib.suppress(Exception):
                attempt.future.cancel()


def wait_for_others(folder: Path, progress: Overall) -> None:
    """Wait until no task of the folder is at work, whoever has started it."""
    known: dict[str, str] = {}
    while alive := living(folder):
        for name, told in alive.items():
            if known.get(name) != told.stage:
                progress.stage(f"{told.host}: {told.stage or told.about}")
            known[name] = told.stage
        time.sleep(2)
