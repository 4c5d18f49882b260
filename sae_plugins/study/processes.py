"""Work that is shared out among processes, with progress that they all report."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Protocol

from sae_plugins.base.children import safe_path, unheard
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.gpus import see_only, visible
from sae_plugins.base.kept import Folder


class Progress(Protocol):
    """What hears of a study while it runs."""

    def stage(self, text: str) -> None:
        """This is being done now."""

    def advance(self, share: float) -> None:
        """So much was done of what `Overall.expect` counts."""


class Overall(Progress, Protocol):
    """What hears of all of a study."""

    def expect(self, shares: int) -> None:
        """There is so much more to do: one for each SAE to train, and one for each to evaluate."""

    def say(self, text: str) -> None:
        """This is for the user to know."""


@dataclass(frozen=True)
class Pass:
    """What one process does: a model and a seed of a study."""

    study: str
    """As JSON."""
    folder: Path
    model: str
    seed: int
    pilots: frozenset[str]
    """Train these pilots, by their folders' names, and evaluate nothing; none for all others."""
    processes: int
    """How many there may be at once that share its memory, this one included."""
    threads: int | None
    """Of torch; None for as many as it likes."""
    cache: Folder | None = None
    """Where the language models' activations are kept."""


Work = Callable[[Pass, Progress], None]


def run_passes(work: Work, tasks: list[Pass], jobs: int, progress: Progress) -> None:
    """Do the tasks, each in a process of its own where `jobs` are more than one.

    `work` is a function of a module, which a process that is started can import.

    Raises:
        SaePluginsError: a process was killed. What `work` raises is raised here, too.
    """
    count = min(jobs, len(tasks))
    if count <= 1:
        for task in tasks:
            work(task, progress)
        return
    context = multiprocessing.get_context("spawn")
    # one bar is drawn, here
    variables = {"OMP_NUM_THREADS": str(tasks[0].threads), "TQDM_DISABLE": "1"}
    with ExitStack() as stack:
        try:
            with unheard(signal.SIGUSR1), safe_path(**variables):
                queue, gpus = context.Queue(), context.Queue()
                for gpu in itertools.islice(itertools.cycle(visible() or [None]), count):
                    gpus.put(gpu)
                started = ProcessPoolExecutor(count, context, _begin, (queue, gpus))
                pool = stack.enter_context(started)
                futures = [pool.submit(_pass_elsewhere, work, task) for task in tasks]
            _listen(futures, queue, progress)
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def default_jobs(tasks: int) -> int:
    """Processes where nothing is said: one per GPU, or per core where there is none."""
    return min(tasks, len(visible()) or os.cpu_count() or 1)


def sharing(jobs: int) -> int:
    """How many of so many processes share one GPU's memory, or that of the machine."""
    return -(-jobs // (len(visible()) or 1))


_queue: Any = None
"""In a process that was started: where what it says goes."""


def _begin(queue: Any, gpus: Any) -> None:
    """Say what is done into `queue`, and end when the process that started this one has ended.

    What is next in `gpus` is the GPU of this process, which sees no other.
    """
    global _queue
    _queue = queue
    if (gpu := gpus.get()) is not None:
        see_only(gpu)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Elsewhere:
    """A `Progress` in another process."""

    def stage(self, text: str) -> None:
        _queue.put(text)

    def advance(self, share: float) -> None:
        _queue.put(share)


def _pass_elsewhere(work: Work, task: Pass) -> None:
    work(task, _Elsewhere())


def _listen(futures: list[Future[None]], queue: Any, progress: Progress) -> None:
    """Hand on what the processes say, until all have ended; raises what one of them raised."""
    while True:
        try:
            said = queue.get(timeout=0.5)
        except Empty:
            if all(future.done() for future in futures):
                break
            continue
        if isinstance(said, str):
            progress.stage(said)
        else:
            progress.advance(said)
    try:
        for future in futures:
            future.result()
    except BrokenProcessPool as error:
        raise SaePluginsError(
            "a process of the study ended without a word, perhaps for want of memory: try a lower "
            "--jobs; what is done is kept"
        ) from error
