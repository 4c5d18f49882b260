"""The processes of a study: what they import, and from where."""

import operator
import os
import signal
import time
from pathlib import Path

import pytest

from sae_plugins.study import processes
from sae_plugins.study.processes import Pass, Progress, run_passes

TASKS = [Pass("", Path("there"), "toy", seed, False, 2, 1) for seed in (0, 1)]


class Nobody:
    def stage(self, text: str) -> None:
        raise AssertionError(text)

    def advance(self, share: float) -> None:
        raise AssertionError(share)


@pytest.mark.parametrize("version", [(3, 11), (3, 10)])
def test_workers_import_nothing_from_the_working_directory(
    version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -c`, as which they are started, would import these in the library's place."""
    ran = tmp_path / "ran"
    for name in ("pickle", "random", "torch", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name} ')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae_plugins.base.children.sys.version_info", version)
    if version < (3, 11):  # which ignores the variable
        monkeypatch.setattr("sae_plugins.base.children.SAFE_PATH", {})
    # a function that any process can import
    run_passes(operator.is_, TASKS, 2, Nobody())  # type: ignore[arg-type]
    assert not ran.exists(), ran.read_text()
    assert Path.cwd() == tmp_path


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)

    def advance(self, share: float) -> None: ...


def tell_gpu(task: Pass, progress: Progress) -> None:
    progress.stage(f"{os.getpid()}: {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    time.sleep(0.3)  # so that the other process gets a task, too


@pytest.mark.parametrize(
    ("visible", "there", "gpus"),
    [
        ("3,5,7", 3, {"3", "5"}),
        pytest.param("", 2, {"0", "1"}, marks=pytest.mark.ci),
        pytest.param("", 0, {"None"}, marks=pytest.mark.ci),
    ],
)
def test_each_worker_has_a_gpu_of_its_own(
    visible: str, there: int, gpus: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    heard = Heard()
    run_passes(tell_gpu, [*TASKS, *TASKS], 2, heard)
    told = dict(text.split(": ") for text in heard.said)
    assert len(heard.said) == 4
    assert set(told.values()) == gpus
    assert len(told) == 2


@pytest.mark.parametrize(
    ("gpus", "tasks", "jobs", "each"), [(8, 12, 8, 1), (8, 3, 3, 1), (1, 12, 1, 1)]
)
def test_a_process_for_each_gpu(
    gpus: int, tasks: int, jobs: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert processes.default_jobs(tasks) == jobs
    assert processes.sharing(jobs) == each
    assert processes.sharing(2 * gpus) == 2


def hear(task: Pass, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    progress.stage("alive")


def test_a_scheduler_s_signal_is_for_the_process_that_started_the_others() -> None:
    heard = Heard()
    run_passes(hear, TASKS, 2, heard)
    assert heard.said == ["alive", "alive"]
