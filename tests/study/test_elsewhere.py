"""A study elsewhere than in this process: the same SAEs and the same findings, whoever dies."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.runs import lockstep
from sae_plugins.study import driver, execute, told, work
from sae_plugins.study.engines import Engine
from sae_plugins.study.gather import gather
from sae_plugins.study.spec import Study
from sae_plugins.study.tasks import Task

STUDY = Study.model_validate(
    {
        "reference": "l1",
        "models": {
            "toy": {
                "train": {**toys.TRAIN, "training_tokens": 11_520},  # 30 steps
                "sparsity": {"l1_coefficient": [0.3, 3.0], "k": [16, 32]},
                "suites": toys.SUITES,
            }
        },
        "arms": {
            "l1": {"kind": "baseline"},
            "topk": {"kind": "control", "train": {"architecture": "topk"}},
            "reordered": {
                "train": {"plugin": ["reorder"], "reorder.start": 5, "reorder.interval": 5}
            },
            "merged": {"train": {"plugin": ["merge"]}},
        },
        "seeds": [0, 1],
    }
)
"""Of 16 SAEs."""
JOBS = 3
"""Of two passes, so that each is cut."""


class Heard:
    def __init__(self, on: Callable[[float], None] = lambda share: None) -> None:
        self.done = self.total = 0.0
        self.said: list[str] = []
        self.on = on

    def say(self, text: str) -> None:
        self.said.append(text)

    def expect(self, shares: int) -> None:
        self.total += shares

    def stage(self, text: str) -> None: ...

    def advance(self, share: float) -> None:
        self.done += share
        self.on(self.done / max(1, self.total))


def found(
    folder: Path, engine: Engine | None, heard: Heard | None = None, study: Study = STUDY
) -> tuple[str, Any]:
    """The hash of all weights, and what the findings say besides times and machines."""
    heard = heard or Heard()
    execute.run(study, folder, JOBS if engine else 1, heard, None, engine)
    assert heard.done == pytest.approx(heard.total)
    weights = hashlib.sha256()
    for file in sorted(folder.glob("saes/*/*/sae_weights.safetensors")):
        weights.update(file.parent.name.encode() + file.read_bytes())
    numbers = gather("try", study, folder).model_dump(exclude={"provenance", "study"})
    timed = ("seconds", "tokens_per_second")
    numbers["scores"] = [score for score in numbers["scores"] if score["metric"] not in timed]
    return weights.hexdigest(), numbers


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    torch.set_num_threads(1)
    found_here = found(tmp_path_factory.mktemp("alone"), None)
    assert len(found_here[1]["trained"]) == 16
    return found_here


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums round by the number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class Here(Executor):
    """Somebody's executor, which costs no process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.parametrize(
    "arms", [["l1", "topk"], pytest.param([*STUDY.arms], marks=pytest.mark.slow)]
)
def test_work_that_is_cut_finds_the_same(arms: list[str], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    wanted = {name: STUDY.arms[name] for name in arms}
    study = STUDY.model_copy(update={"seeds": [0], "arms": wanted})
    whole = found(tmp_path / "whole", None, study=study)
    assert found(tmp_path / "cut", Engine(f"{__name__}:Here"), study=study) == whole
    trained = [one.saes for one in told.reports(tmp_path / "cut").values() if one.saes]
    assert len(trained) > 2
    assert len({sae for saes in trained for sae in saes}) == 2 * len(arms)
    assert not told.living(tmp_path / "cut")
    assert not list(tmp_path.glob("cut/evaluations/toy/*/parts"))


@pytest.mark.slow
def test_what_is_there_counts_in_no_cost(
    alone: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(work, "costs", lambda *told: counts.append(told[-1]) or {})
    study = STUDY.model_copy(update={"seeds": [0]})
    execute.run(study, tmp_path, 1, Heard())
    shutil.rmtree(next(tmp_path.glob("saes/toy/l1_*")))
    counts.clear()
    execute.run(study, tmp_path, 1, Heard())
    assert counts[0] == 1


def test_saes_that_are_others_on_the_machine_of_a_task_are_no_silence(tmp_path: Path) -> None:
    task = Task(STUDY.model_dump_json(), tmp_path, "toy", 0, ("l1_l1_coefficient-3_seed0-other",))
    with pytest.raises(SaePluginsError, match=r"seed0-other is no SAE of the study: code, data"):
        work.work(task, Heard())


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Engine(), marks=pytest.mark.slow),
        pytest.param(Engine("slurm", {"cluster": "local"}), marks=pytest.mark.slow),
    ],
)
def test_processes_and_jobs_find_the_same(
    engine: Engine, alone: tuple[str, Any], tmp_path: Path
) -> None:
    assert found(tmp_path, engine) == alone


def dask() -> Any:
    """As a group would write it into a module of its own."""
    from distributed import Client

    return Client(n_workers=2, threads_per_worker=1, dashboard_address=None).get_executor()


@contextmanager
def ray_cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_dask_finds_the_same(alone: tuple[str, Any], tmp_path: Path) -> None:
    assert found(tmp_path, Engine(f"{__name__}:dask")) == alone


@pytest.mark.slow
def test_ray_finds_the_same_on_two_nodes(alone: tuple[str, Any], tmp_path: Path) -> None:
    with ray_cluster() as cluster:
        cluster.add_node(num_cpus=1)
        assert found(tmp_path, Engine("ray", {"address": cluster.address})) == alone


class Forked(Executor):
    """Processes that cost no import; one that is killed ends its future, and nothing else."""

    def __init__(self, most: int = 2) -> None:
        self._room = threading.Semaphore(most)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        threading.Thread(target=self._run, args=(future, fn, args), daemon=True).start()
        return future

    def _run(self, future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        with self._room:
            reading, writing = os.pipe()
            process = os.fork()
            if not process:
                os.write(writing, pickle.dumps(fn(*args)))
                os._exit(0)
            os.close(writing)
            said = os.read(reading, 1 << 16)
            os.close(reading)
            os.waitpid(process, 0)
        if said:
            future.set_result(pickle.loads(said))
        else:
            future.set_exception(RuntimeError("its machine is gone"))


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(0, marks=pytest.mark.ci),
        *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3, 4)),
    ],
)
def test_tasks_that_are_killed_are_done_again_to_the_same_end(
    seed: int, alone: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, killed = random.Random(seed), list[str]()
    moments = sorted(draw.uniform(0, 0.9) for _ in range(3))
    monkeypatch.setattr(driver, "_POLL", 0.05)
    monkeypatch.setattr(lockstep, "Kept", functools.partial(lockstep.Kept, every="7"))

    def kill(share: float) -> None:
        alive = told.living(tmp_path)
        # three deaths of one task at the same place would end the study
        may = [name for name in sorted(alive) if killed.count(alive[name].about) < 2]
        if moments and share >= moments[0] and may:
            name = draw.choice(may)
            os.kill(alive[name].process, signal.SIGKILL)
            killed.append(alive[name].about)
            moments.pop(0)

    heard = Heard(kill)
    assert found(tmp_path, Engine(f"{__name__}:Forked"), heard) == alone
    assert len(killed) >= 2
    assert len([text for text in heard.said if "its machine is gone" in text]) == len(killed)
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.slow
def test_a_node_of_ray_that_dies_changes_nothing(alone: tuple[str, Any], tmp_path: Path) -> None:
    with ray_cluster() as cluster:
        second = cluster.add_node(num_cpus=1)

        def remove(share: float) -> None:
            nonlocal second
            if second is not None and share > 0.3:
                cluster.remove_node(second, allow_graceful=False)
                second = None

        assert found(tmp_path, Engine("ray", {"address": cluster.address}), Heard(remove)) == alone
        assert second is None
