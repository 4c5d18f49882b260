"""From tasks to what they have done: an executor does them, and this process follows."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.secrets import reason_of
from sae_plugins.study.progress import Overall
from sae_plugins.study.tasks import Task, Work
from sae_plugins.study.told import Report, Told, living, new_name, report_of

_POLL = 0.5
"""Seconds between two looks at what tasks tell."""
_DEATHS = 3
"""After so many deaths of a task, one after another, which got no further, a study ends."""


def perform(work: Work, task: Task, name: str, then: Any = None) -> Exception | None:
    """Do of a task what no other one does, in whichever process this is.

    Returns:
        What went wrong, so that it is told from the death of the process.
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
    return None


def _as_told(error: Exception) -> Exception:
    """An error that another process can read."""
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

    A task whose process died is tried again, and goes on from what it has kept.

    Raises:
        SaePluginsError: a task dies again and again. What `work` raises is raised here, too.
    """
    if executor is None:
        for task in tasks:
            if (error := perform(work, task, new_name(task.about), progress)) is not None:
                raise error
            run_tasks(work, then(task), None, progress)
        return
    running: dict[str, _Attempt] = {}

    def submit(task: Task, **known: Any) -> None:
        name = new_name(task.about)
        running[name] = _Attempt(task, executor.submit(perform, work, task, name), **known)

    try:
        for task in tasks:
            submit(task)
        while running:
            time.sleep(_POLL)
            for name, attempt in [*running.items()]:
                ended = attempt.future.done()  # before the look, so that nothing is missed
                attempt.listen(report_of(attempt.task.folder, name), progress)
                if not ended:
                    continue
                del running[name]
                try:
                    error = attempt.future.result()
                except BrokenProcessPool as broken:
                    raise SaePluginsError(
                        "a process of the study ended without a word, perhaps for want of memory: "
                        "try a lower --jobs; what is done is kept"
                    ) from broken
                except Exception as death:
                    submit(attempt.task, **_after(death, attempt, progress))
                    continue
                if error is not None:
                    raise error
                for task in then(attempt.task):
                    submit(task)
    except BaseException:
        _leave(running)
        raise


def _after(death: Exception, attempt: _Attempt, progress: Overall) -> dict[str, Any]:
    """What is known of a task that died, for the one in its place.

    Raises:
        SaePluginsError: it dies again and again.
    """
    further = attempt.share > attempt.furthest
    deaths = 1 if further else attempt.deaths + 1
    said = f"{attempt.task.about} ended without a word ({reason_of(death)})"
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


def wait_for_others(task_folder: Any, progress: Overall) -> bool:
    """Wait until no task of the folder is at work, whoever has started it; whether any was."""
    known: dict[str, str] = {}
    while alive := living(task_folder):
        for name, told in alive.items():
            if known.get(name) != told.stage:
                progress.stage(f"{told.host}: {told.stage or told.about}")
            known[name] = told.stage
        time.sleep(2)
    return bool(known)
