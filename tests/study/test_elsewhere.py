"""A study elsewhere than in this process: the same SAEs and the same findings, whoever dies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_plugins.study import execute, told
from sae_plugins.study.engines import Engine
from sae_plugins.study.gather import gather
from sae_plugins.study.spec import Study

STUDY = Study.model_validate(
    {
        "reference": "l1",
        "models": {
            "toy": {
                "train": {
                    "model_name": "synthetic:toy",
                    "training_tokens": 11_520,  # 30 steps
                    "n_batches_for_norm_estimate": 4,
                    "heldout_tokens": 4096,
                    "d_sae": 32,
                },
                "sparsity": {"l1_coefficient": [0.3, 3.0], "k": [16, 32]},
                "suites": {"ground-truth": {"samples": 500}},
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


def found(folder: Path, engine: Engine | None, heard: Heard | None = None) -> tuple[str, Any]:
    """The hash of all weights, and what the findings say besides times and machines."""
    heard = heard or Heard()
    execute.run(STUDY, folder, JOBS if engine else 1, heard, None, engine)
    assert heard.done == pytest.approx(heard.total)
    return kept(folder)


def kept(folder: Path) -> tuple[str, Any]:
    weights = hashlib.sha256()
    for file in sorted(folder.glob("saes/*/*/sae_weights.safetensors")):
        weights.update(file.parent.name.encode() + file.read_bytes())
    numbers = gather("try", STUDY, folder).model_dump(exclude={"provenance", "study"})
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


def test_work_that_is_cut_finds_the_same(alone: tuple[str, Any], tmp_path: Path) -> None:
    assert found(tmp_path, Engine(f"{__name__}:Here")) == alone
    trained = [one.saes for one in told.reports(tmp_path).values() if one.saes]
    assert len(trained) > 2  # passes
    assert len({sae for saes in trained for sae in saes}) == 16
    assert not told.living(tmp_path)
    assert not list(tmp_path.glob("evaluations/toy/*/parts"))


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Engine(), marks=pytest.mark.ci),
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

    return Client(n_workers=2, threads_per_worker=1, dashboard_address=None).get_executor(retries=3)


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
