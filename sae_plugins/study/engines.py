"""Where the tasks of a study run: here, under Slurm or Ray, or in anybody's executor.

An engine is an `Executor` of `concurrent.futures`, or what looks like one: all that is asked of it
is `submit`, and of what that returns `done`, `result` and `cancel`.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_plugins.base.children import in_sessions, safe_path, unheard, working_in
from sae_plugins.base.errors import Paused, SaePluginsError
from sae_plugins.base.extras import imported
from sae_plugins.base.gpus import see_only, visible

logger = logging.getLogger(__name__)

_NEVER = 10**6
"""Minutes after which submitit ends a job of this machine."""
_PYTHON = shlex.join([sys.executable, *(["-P"] if sys.version_info >= (3, 11) else [])])
"""Of jobs, whose environment may be another one: `--export=NONE` is the rule of some clusters."""
Options = Mapping[str, Any]
"""Of an engine, by the names that follow its own: {"partition": "gpu"} of --slurm.partition gpu."""


@dataclass(frozen=True)
class Engine:
    """Where the tasks of a study run.

    Attributes:
        name: "local", "slurm", "ray", or MODULE:FUNCTION.
        options: of Slurm, or of Ray.
    """

    name: str = "local"
    options: Options = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether tasks are processes of this machine."""
        return self.name == "local"

    def jobs(self, passes: int) -> int:
        """How many tasks are done at once where nobody says it, of a study of so many passes."""
        if not self.is_here:
            return passes
        return len(visible()) or min(passes, os.cpu_count() or 1)

    def sharing(self, jobs: int) -> int:
        """How many of so many tasks share one GPU's memory, or that of a machine, once it is open.

        A job of Slurm is told itself what it has of its machine's.
        """
        if self.name == "ray":
            return max(1, min(jobs, _sharing_in_ray(self.options, jobs)))
        if self.options.get("cluster") == "local":
            return jobs
        return -(-jobs // (len(visible()) or 1)) if self.is_here else 1

    def open(
        self, folder: Path, jobs: int, threads: int | None
    ) -> AbstractContextManager[Executor | None]:
        """The executor, for a study in a folder; None for this very process.

        Raises:
            SaePluginsError: what it needs is not installed, or not there.
        """
        if self.is_here:
            return local(jobs, threads)
        if self.name == "slurm":
            return slurm(folder / "slurm", self.options)
        return ray(self.options) if self.name == "ray" else anybodys(self.name)


class Careful(Executor):
    """Another executor, whose processes import nothing from the working folder and draw no bars.

    A signal by which a scheduler pauses the study is for the process that drives it.
    """

    def __init__(self, inner: Any, **variables: str) -> None:
        """Wrap it, with environment variables for its processes."""
        self._inner, self._variables = inner, {"TQDM_DISABLE": "1", **variables}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Have it call a function."""
        with unheard(signal.SIGUSR1), safe_path(**self._variables):
            return self._inner.submit(fn, *args, **kwargs)


class _Jobs(Careful):
    """Jobs of submitit, which go on when this process ends, those of this machine, too."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Have a job call a function, until its time is over."""
        with in_sessions():
            return super().submit(in_job, fn, *args, **kwargs)


def in_job(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, which is paused when Slurm says that the job's time will soon be over.

    submitit would raise an error wherever the function is, and so count as a failure of that SAE.

    Raises:
        Paused: the time is over.
    """

    def pause(number: int, frame: Any) -> None:
        raise Paused("the time of the job is over")

    signal.signal(signal.SIGUSR1, pause)  # which a training answers when its step has ended
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGUSR1))
    return fn(*args, **kwargs)


@contextmanager
def local(jobs: int, threads: int | None) -> Iterator[Executor | None]:
    """Processes of this machine, each with a GPU of its own where there are any; None for one."""
    if jobs <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with safe_path():
        gpus = context.Queue()
    for gpu in itertools.islice(itertools.cycle(visible() or [None]), jobs):
        gpus.put(gpu)
    with ProcessPoolExecutor(jobs, context, _begin, (gpus,)) as pool:
        try:
            yield Careful(pool, OMP_NUM_THREADS=str(threads))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin(gpus: Any) -> None:
    """See one GPU, and end when the process that started this one has ended."""
    if (gpu := gpus.get()) is not None:
        see_only(gpu)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def slurm(folder: Path, options: Options) -> Iterator[Executor]:
    """Jobs of Slurm, a task each, which outlive the process that drives them."""
    submitit = imported("submitit", "slurm", "--on slurm")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # jobs run what lies in it
    if options.get("cluster") == "local":  # to try it without Slurm
        if others := ", ".join(f"--slurm.{key}" for key in options if key != "cluster"):
            raise SaePluginsError(
                f"--slurm.cluster local runs jobs without Slurm: leave {others} out"
            )
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=_NEVER)
    elif shutil.which("sbatch") is None:
        raise SaePluginsError("--on slurm: this machine has no sbatch")
    elif "time" not in options:  # submitit would end every job after five minutes
        raise SaePluginsError(
            "--on slurm: say how long a job may take, such as --slurm.time 4:00:00"
        )
    else:
        executor = submitit.SlurmExecutor(folder, python=_PYTHON)
        again = {} if "requeue" in options else {"no_requeue": True}  # the driver does that
        executor.update_parameters(
            job_name="sae-plugins", additional_parameters={**again, **options}
        )
    try:
        yield _Jobs(executor)
    except BaseException:
        logger.warning("jobs that have begun go on; the same command waits for them")
        raise


@contextmanager
def ray(options: Options) -> Iterator[Executor]:
    """Tasks of a Ray cluster, spread over its nodes."""
    cluster = imported("ray", "ray", "--on ray")
    options = dict(options)
    address = options.pop("address", "auto")
    try:
        with working_in(os.sep):  # where Ray's workers would look for modules
            cluster.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise SaePluginsError(
            f"--on ray: no cluster at the address {address}; `ray start --head` starts one, and "
            "--ray.address names another"
        ) from error
    options.setdefault("num_gpus", _gpus_in_ray(options))
    options.setdefault("max_retries", 0)  # the driver does that, and counts them

    class Ray(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            task = cluster.remote(fn).options(scheduling_strategy="SPREAD", **options)
            return task.remote(*args, **kwargs).future()

    try:
        yield Ray()
    finally:
        cluster.shutdown()


def _gpus_in_ray(options: Options) -> float:
    """How many GPUs a task has, or which part of one."""
    cluster = imported("ray", "ray", "--on ray")
    found = options.get("num_gpus", int(cluster.cluster_resources().get("GPU", 0) > 0))
    return float(found)


def _sharing_in_ray(options: Options, jobs: int) -> int:
    """How many of so many tasks Ray may put on one GPU; without GPUs, on one node."""
    if part := _gpus_in_ray(options):
        return int(1 / part)
    cluster = imported("ray", "ray", "--on ray")
    takes = {"CPU": options.get("num_cpus", 1), "memory": options.get("memory")}
    nodes = [node["Resources"] for node in cluster.nodes() if node["Alive"]]
    rooms = [[node.get(name, 0) / n for name, n in takes.items() if n] for node in nodes]
    return max((int(min(room, default=jobs)) for room in rooms), default=1)


@contextmanager
def anybodys(name: str) -> Iterator[Executor]:
    """What a function of an installed module returns, by MODULE:FUNCTION."""
    module, _, function = name.partition(":")
    try:
        with safe_path(TQDM_DISABLE="1"):  # it may start processes
            made = getattr(importlib.import_module(module), function)()
        if not hasattr(made, "submit"):
            raise TypeError(f"it returns {made!r}")
    except (ImportError, AttributeError, TypeError) as error:
        raise SaePluginsError(
            f"--on {name}: {error}; name a function of an installed module that takes nothing and "
            "returns an Executor"
        ) from error
    try:
        yield Careful(made)
    finally:
        if hasattr(made, "shutdown"):
            made.shutdown(wait=False)
