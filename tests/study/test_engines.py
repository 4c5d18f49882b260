"""The engines of a study: what their processes import, see and hear, and what is asked of them."""

import operator
import os
import signal
import stat
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from sae_plugins.base.errors import Paused, Problems, SaePluginsError
from sae_plugins.entrypoints.study_engine import ON, engine_of
from sae_plugins.resume.signals import Waiting
from sae_plugins.settings.command_line import parse
from sae_plugins.study.driver import run_tasks
from sae_plugins.study.engines import Engine, in_job
from sae_plugins.study.progress import Progress
from sae_plugins.study.tasks import Task


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)

    def advance(self, share: float) -> None: ...
    def expect(self, shares: int) -> None: ...
    def say(self, text: str) -> None: ...


def tasks(folder: Path, count: int = 2) -> list[Task]:
    return [Task("", folder, "toy", seed, (f"sae{seed}",)) for seed in range(count)]


def nothing(task: Task, progress: Progress) -> dict[str, str]:
    return {}


@pytest.mark.parametrize(
    ("version", "engine"),
    [
        ((3, 11), Engine()),
        pytest.param((3, 10), Engine(), marks=pytest.mark.ci),
        pytest.param((3, 11), Engine("slurm", {"cluster": "local"}), marks=pytest.mark.ci),
    ],
)
def test_workers_import_nothing_from_the_working_directory(
    version: tuple[int, int], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -c`, as which they are started, would import these in the library's place."""
    ran, here, study = tmp_path / "ran", tmp_path / "here", tmp_path / "study"
    for folder in (here, study):
        folder.mkdir()
    for name in ("pickle", "random", "torch", "multiprocessing", "submitit"):
        (here / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name} ')")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # jobs find this module there
    monkeypatch.setattr("sae_plugins.base.children.sys.version_info", version)
    if version < (3, 11):  # which ignores the variable
        monkeypatch.setattr("sae_plugins.base.children.SAFE_PATH", {})
    with engine.open(study, 2, 1) as executor:
        run_tasks(nothing, tasks(study), executor, Heard())
    assert not ran.exists(), ran.read_text()
    assert Path.cwd() == here


def tell_gpu(task: Task, progress: Progress) -> dict[str, str]:
    progress.stage(f"{os.getpid()}: {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    time.sleep(0.3)  # so that the other process gets a task, too
    return {}


@pytest.mark.parametrize(
    ("visible", "there", "gpus"),
    [
        ("3,5,7", 3, {"3", "5"}),
        pytest.param("", 2, {"0", "1"}, marks=pytest.mark.ci),
        pytest.param("", 0, {"None"}, marks=pytest.mark.ci),
    ],
)
def test_each_worker_has_a_gpu_of_its_own(
    visible: str, there: int, gpus: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    heard = Heard()
    with Engine().open(tmp_path, 2, 1) as executor:
        run_tasks(tell_gpu, tasks(tmp_path, 4), executor, heard)
    told = dict(text.split(": ") for text in heard.said)
    assert len(heard.said) == 4
    assert set(told.values()) == gpus
    assert len(told) == 2


@pytest.mark.parametrize(
    ("gpus", "passes", "jobs", "each"), [(8, 12, 8, 1), (8, 3, 8, 1), (1, 12, 1, 1)]
)
def test_a_process_for_each_gpu(
    gpus: int, passes: int, jobs: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert Engine().jobs(passes) == jobs
    assert Engine().sharing(jobs) == each
    assert Engine().sharing(2 * gpus) == 2
    assert Engine("ray").jobs(passes) == passes


@pytest.mark.parametrize(
    ("engine", "gpus", "each"),
    [
        (Engine("ray"), 4, 1),
        (Engine("ray", {"num_gpus": 0.5}), 4, 2),
        (Engine("ray", {"num_gpus": 0.1}), 4, 5),  # no more than there are
        (Engine("ray", {"num_gpus": 0}), 4, 5),
        (Engine("ray"), 0, 5),
        (Engine("ray", {"num_cpus": 3}), 0, 2),
        (Engine("ray", {"num_cpus": 16}), 0, 1),
        (Engine("ray", {"memory": 4e9}), 0, 2),
        (Engine("slurm", {"time": "4:00:00"}), 4, 1),
        (Engine("slurm", {"cluster": "local"}), 0, 5),
    ],
)
def test_tasks_that_share_a_node_share_its_memory(
    engine: Engine, gpus: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ray:
        nodes = staticmethod(
            lambda: [
                {"Alive": True, "Resources": {"CPU": 2.0, "memory": 9e9}},
                {"Alive": True, "Resources": {"CPU": 8.0, "memory": 9e9}},
                {"Alive": False, "Resources": {}},
            ]
        )
        cluster_resources = staticmethod(lambda: {"GPU": gpus} if gpus else {})

    monkeypatch.setitem(sys.modules, "ray", Ray)
    assert engine.sharing(5) == each


def hear(task: Task, progress: Progress) -> dict[str, str]:
    os.kill(os.getpid(), signal.SIGUSR1)
    progress.stage("alive")
    return {}


def test_a_scheduler_s_signal_is_for_the_process_that_started_the_others(tmp_path: Path) -> None:
    heard = Heard()
    with Engine().open(tmp_path, 2, 1) as executor:
        run_tasks(hear, tasks(tmp_path), executor, heard)
    assert heard.said == ["alive", "alive"]


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What sbatch is given, on a machine that has Slurm, as far as can be seen."""
    given = tmp_path / "given"
    for name in ("sbatch", "srun", "sacct"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\n[ $# -eq 1 ] && cat "$1" > {given}; env >> {given}\n'
            "echo Submitted batch job 12\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return given


def test_slurm_gets_what_its_options_say(sbatch: Path, tmp_path: Path) -> None:
    options = {"time": "4:00:00", "partition": "gpu", "gpus_per_node": 1, "mail_type": "END"}
    with Engine("slurm", options).open(tmp_path, 2, None) as executor:
        assert executor is not None
        executor.submit(operator.is_, 1, 2)
    assert stat.S_IMODE((tmp_path / "slurm").stat().st_mode) == 0o700  # pickles, and the study
    given = sbatch.read_text().splitlines()
    told = ("time=4:00:00", "partition=gpu", "gpus-per-node=1", "mail-type=END", "no-requeue")
    for line in told:
        assert f"#SBATCH --{line}" in given
    assert not [line for line in given if line == "#SBATCH --time=5"]
    assert "PYTHONSAFEPATH=1" in given
    if sys.version_info >= (3, 11):  # also where jobs do not get this environment
        assert any("-P -u -m submitit" in line for line in given)


def test_ctrl_c_in_a_terminal_is_not_for_jobs_of_this_machine(tmp_path: Path) -> None:
    """Their controller would kill them a second later, in the middle of a checkpoint."""
    with Engine("slurm", {"cluster": "local"}).open(tmp_path, 1, None) as executor:
        assert executor is not None
        job = executor.submit(operator.is_, 1, 2)
        try:
            assert os.getsid(int(job.job_id)) == int(job.job_id) != os.getsid(0)  # no terminal's
        finally:
            job._process.kill()
            job._process.wait()


def test_slurm_is_refused_without_a_time_or_without_slurm(
    sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(SaePluginsError, match="how long a job may take"),
        Engine("slurm").open(tmp_path, 2, None),
    ):
        pass
    local = Engine("slurm", {"cluster": "local", "time": "4:00:00"})
    with (
        pytest.raises(SaePluginsError, match=r"leave --slurm\.time out"),
        local.open(tmp_path, 2, 1),
    ):
        pass
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SaePluginsError, match="no sbatch"), Engine("slurm").open(tmp_path, 2, None):
        pass


def out_of_time(seen: list[str]) -> None:
    """Work whose job gets Slurm's signal in the middle of a step."""
    with Waiting() as waiting:
        signal.raise_signal(signal.SIGUSR2)
        seen.append("the step ends")
        waiting.answer(lambda: seen.append("a checkpoint is written"))
    seen.append("never")


def test_a_job_whose_time_is_over_is_paused_and_no_sae_of_it_has_failed() -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGUSR1, signal.SIGUSR2)}
    seen: list[str] = []
    try:
        signal.signal(signal.SIGUSR2, lambda *_: seen.append("an error of submitit"))
        with pytest.raises(Paused):
            in_job(out_of_time, seen)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert seen == ["the step ends", "a checkpoint is written"]


def safely() -> Executor:
    assert os.environ["PYTHONSAFEPATH"] == "1"  # for the processes of a cluster that begins here
    return ThreadPoolExecutor()


def test_an_executor_of_one_s_own_starts_its_processes_safely(tmp_path: Path) -> None:
    with Engine(f"{__name__}:safely").open(tmp_path, 2, 1) as executor:
        run_tasks(nothing, tasks(tmp_path), executor, Heard())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("os:getcwd", "it returns '/.*'; name a function"),
        ("nobody:engine", "No module named 'nobody'"),
        ("operator:nothing", "no attribute 'nothing'"),
        ("operator:pow", "takes nothing and returns an Executor"),
    ],
)
def test_what_is_no_engine_is_named(name: str, said: str, tmp_path: Path) -> None:
    with (
        pytest.raises(SaePluginsError, match=f"--on {name}: .*{said}"),
        Engine(name).open(tmp_path, 2, None),
    ):
        pass


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(SaePluginsError, match=r"pip install 'sae-plugins\[ray\]'"),
        Engine("ray").open(tmp_path, 2, None),
    ):
        pass


def test_options_are_for_the_engine_that_is_named() -> None:
    def engine(*words: str) -> tuple[Engine | None, Problems]:
        problems = Problems()
        line = parse([*words], {"on": ON}, problems)
        return engine_of(line, {"on": ON}, problems), problems

    slurm = [
        "--on",
        "slurm",
        "--slurm.account",
        "007",
        "--slurm.mail-type=END",
        "--slurm.exclusive",
    ]
    found, _ = engine(*slurm)
    assert found is not None
    assert found.options == {"account": "007", "mail_type": "END", "exclusive": True}
    found, _ = engine("--on", "ray", "--ray.num_gpus", "0.5", "--ray.address", "here:6379")
    assert found is not None
    assert found.options == {"num_gpus": 0.5, "address": "here:6379"}
    _, problems = engine("--slurm.time", "4:00:00")
    with pytest.raises(SaePluginsError, match=r"--slurm\.time: it needs --on slurm"):
        problems.stop()
