"""A run that pauses, and `--go_on`: the same command line starts it, goes on, and ends it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import faults
import pytest

from sae_plugins.base import ranks
from sae_plugins.base.errors import Paused
from sae_plugins.entrypoints.main import main
from sae_plugins.framework.forked import on_ranks
from sae_plugins.framework.trainer import PluginTrainer
from sae_plugins.resume.files import files as checkpoints_in
from sae_plugins.runs import journal
from sae_plugins.runs import summary as summaries
from sae_plugins.runs.folder import OUR_CHECKPOINTS, UNFINISHED
from sae_plugins.runs.recorder import Recorder
from sae_plugins.runs.run_folder import RunFolder

RUN = [
    *("--training_tokens", "1280", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "64"),
    *("--plugin", "reorder", "--reorder.start", "5", "--reorder.interval", "7"),
    *("--recorder.every", "1", "--output_path", "run"),
]
"""20 steps."""
GOES_ON = "go on with it: sae-plugins train --resume run"
RUN_FOLDER = Path("run")


@pytest.fixture(autouse=True)
def folder(tiny_world: Any, sketched: None, tmp_path: Path) -> Path:
    """An empty working directory, and a tiny model for the embedded world."""
    return tmp_path


Told = Callable[..., None]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Train, with a signal when so many rows are written."""

    def train(row: int, *arguments: str, code: int, number: int = signal.SIGUSR1) -> None:
        with monkeypatch.context() as patched:
            stop = faults.flush_then(row, lambda: signal.raise_signal(number))
            patched.setattr(Recorder, "flush", stop)
            assert main(["train", *arguments]) == code

    return train


@pytest.fixture(scope="module")
def left() -> dict[str, Any]:
    """What runs leave, by what they are called."""
    return {}


def contents(run: Path = RUN_FOLDER) -> dict[str, Any]:
    return faults.contents(run, "_path")


def saved() -> list[str]:
    return [path.name for path in checkpoints_in(RUN_FOLDER / UNFINISHED / OUR_CHECKPOINTS)]


@pytest.fixture
def whole(left: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What a run leaves that was never stopped."""
    if not left:
        assert main(["train", *RUN]) == 0
        left |= contents()
        RUN_FOLDER.rename(tmp_path / "elsewhere")
    return left


# -- pausing -----------------------------------------------------------------------------------


def test_a_paused_run_ends_with_the_code_that_means_go_on_and_says_how(
    told: Told, whole: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    told(7, *RUN, code=75)
    said = capfd.readouterr()
    assert GOES_ON in said.out
    assert said.err.endswith("sae-plugins train: paused\n")
    assert saved() == ["step-000000008.safetensors"]
    assert not list(RUN_FOLDER.rglob("summary.json"))
    assert main(["train", "--resume", "run"]) == 0
    assert contents() == whole


def test_a_run_pauses_at_the_end_of_its_time(
    whole: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is no part of the run, and each command has its own."""
    age = [0]
    monkeypatch.setattr("sae_plugins.resume.signals.age", lambda: age[0])
    with monkeypatch.context() as patched:
        later = faults.flush_then(7, lambda: age.insert(0, 13_800))
        patched.setattr(Recorder, "flush", later)
        assert main(["train", *RUN, "--max_time", "3h50m"]) == 75
    assert GOES_ON in capfd.readouterr().out
    assert saved() == ["step-000000008.safetensors"]  # the step in which it was over, too
    assert main(["train", "--resume", "run", "--max_time", "3h50m"]) == 1
    assert "the time of 3h50m was over before the first step" in capfd.readouterr().err
    assert main(["train", "--resume", "run", "--max_time", "3h51m"]) == 0
    assert contents() == whole


def test_a_time_that_is_none_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *RUN, "--max_time", "04:00:00"]) == 2
    assert "--max_time: '04:00:00' is no length of time" in capfd.readouterr().err
    assert not RUN_FOLDER.exists()


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("before", marks=pytest.mark.ci),
        "after",
        pytest.param("scoring", marks=pytest.mark.ci),
    ],
)
def test_a_run_pauses_also_outside_its_steps(
    where: str, whole: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """While it is loaded at once, while the SAE is saved afterwards; and nothing is scored."""
    own = {
        "before": (PluginTrainer, "fit"),
        "after": (RunFolder, "note_trained"),
        "scoring": (summaries, "write_summary"),
    }
    place, name = own[where]
    before = getattr(place, name)

    def signalled(*given: Any, **how: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return before(*given, **how)

    with monkeypatch.context() as patched:
        patched.setattr(place, name, signalled)
        assert main(["train", *RUN]) == 75
    assert not list(RUN_FOLDER.rglob("summary.json"))
    if where == "before":
        assert not RUN_FOLDER.exists()
        return
    assert f"the trained SAE is in run/unfinished; {GOES_ON}" in capfd.readouterr().out
    monkeypatch.setattr(PluginTrainer, "step", None)
    assert main(["train", "--resume", "run"]) == 0
    assert contents() == whole


def test_commands_that_cannot_go_on_are_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def paused(*_: Any) -> None:
        raise Paused

    monkeypatch.setattr("sae_plugins.entrypoints.main._run", paused)
    codes = {name: main([name]) for name in ("train", "evaluate", "study", "upload", "features")}
    assert codes == {"train": 75, "evaluate": 75, "study": 75, "upload": 75, "features": 130}


# -- the same command line -----------------------------------------------------------------------


def test_one_command_line_starts_goes_on_and_ends(
    told: Told, whole: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(5, *RUN, "--go_on", code=75)
    told(9, *RUN, "--go_on", code=130, number=signal.SIGTERM)
    assert saved()[0] == "step-000000010.safetensors"
    assert main(["train", *RUN, "--go_on"]) == 0
    assert contents() == whole
    monkeypatch.setattr(PluginTrainer, "step", None)
    capfd.readouterr()
    assert main(["train", *RUN, "--go_on"]) == 0
    said = capfd.readouterr().out
    assert "the run in run has ended; this command has nothing to go on with" in said
    assert "explained_variance" in said
    assert contents() == whole


@pytest.mark.ci
def test_a_run_that_was_stopped_before_its_first_checkpoint_is_started_again(
    told: Told, whole: Any
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Recorder, "flush", faults.flush_then(3, twice))
        assert main(["train", *RUN, "--go_on"]) == 130
    assert saved() == []
    assert main(["train", *RUN, "--go_on"]) == 0
    assert {name: row for name, row in contents().items() if UNFINISHED not in name} == whole


@pytest.mark.ci
def test_a_run_whose_files_were_moving_ends(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "carry_out", failing)
        assert main(["train", *RUN, "--go_on"]) == 1
    assert main(["train", *RUN, "--go_on"]) == 0
    assert contents() == whole


@pytest.mark.parametrize("ended", [False, pytest.param(True, marks=pytest.mark.ci)])
def test_another_run_is_refused_by_what_differs(
    ended: bool, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    told(40 if ended else 5, *RUN, code=0 if ended else 75)
    before = contents()
    changes = ["--lr", "0.5", "--reorder.interval", "8", "--seed", "7", "--checkpoint_every", "9"]
    assert main(["train", *RUN, *changes, "--go_on"]) == 2
    said = capfd.readouterr().err
    assert "--output_path run has another run, with which this command cannot go on" in said
    for name, new, old in (("lr", 0.5, 0.001), ("reorder.interval", 8, 7), ("seed", 7, 42)):
        assert f"--{name} {new}, it began with {old}" in said
    assert "checkpoint_every" not in said
    assert main(["train", *RUN, "--plugin", "merge", "--go_on"]) == 2
    assert "--plugin reorder merge, it began with reorder" in capfd.readouterr().err
    assert contents() == before


def test_what_go_on_does_not_go_with_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *RUN, "--go_on", "--overwrite"]) == 2
    assert "--go_on keeps what an earlier run has left" in capfd.readouterr().err
    assert main(["train", "--resume", "run", "--go_on"]) == 2
    assert "--go_on cannot be combined with --resume" in capfd.readouterr().err
    assert not RUN_FOLDER.exists()


# -- started again by Slurm or torchrun ------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "more"),
    [
        ("SLURM_RESTART_COUNT", ()),
        pytest.param("SLURM_RESTART_COUNT", ("--overwrite",), marks=pytest.mark.ci),
        pytest.param("TORCHELASTIC_RESTART_COUNT", (), marks=pytest.mark.ci),
    ],
)
def test_what_is_started_again_goes_on_by_the_same_command_line(
    variable: str, more: tuple[str, ...], told: Told, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with --overwrite, which meant what was there before."""
    if more:
        told(40, *RUN, "--seed", "7", code=0)
    told(5, *RUN, *more, code=75)
    monkeypatch.setenv(variable, "1")
    told(9, *RUN, *more, code=75)
    assert saved()[0] == "step-000000010.safetensors"
    monkeypatch.setenv(variable, "2")
    assert main(["train", *RUN, *more]) == 0
    assert contents() == whole
    if not more:
        monkeypatch.setattr(PluginTrainer, "step", None)
        assert main(["train", *RUN]) == 0


@pytest.mark.ci
def test_what_was_stopped_before_it_could_replace_another_run_does(
    told: Told, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(5, *RUN, "--seed", "7", code=75)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(["train", *RUN]) == 2
    assert main(["train", *RUN, "--overwrite"]) == 0
    assert contents()["sae_weights.safetensors"] == whole["sae_weights.safetensors"]


# -- on several ranks ------------------------------------------------------------------------------


def on_two(act: Callable[[], Any]) -> list[Any]:
    return on_ranks(2, act)


def trained(*arguments: str) -> int:
    """The exit code; what is said is in the log of the rank."""
    rank = os.environ.get("RANK") or os.environ["SLURM_PROCID"]
    with Path(f"log-{rank}").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        return main(["train", *arguments])


def said(rank: int) -> str:
    return Path(f"log-{rank}").read_text()


def told_on(rank: int, row: int, then: Callable[[], Any]) -> None:
    """Do that on a rank, which is this process, when so many rows are written."""
    if os.environ["RANK"] == str(rank):
        Recorder.flush = faults.flush_then(row, then)  # type: ignore[method-assign]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.ci), 1])
def test_all_ranks_end_with_the_code_wherever_the_signal_comes(rank: int) -> None:
    def act() -> int:
        told_on(rank, 4, lambda: signal.raise_signal(signal.SIGUSR1))
        return trained(*RUN)

    assert on_two(act) == [75, 75]
    assert said(0).count(GOES_ON) == said(0).count("sae-plugins train: paused") == 1
    assert said(1) == ""
    assert len(saved()) == 1
    assert main(["train", "--resume", "run"]) == 0


@pytest.mark.ci
def test_rank_0_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> int:
        age = [10**6 * int(os.environ["RANK"])]  # rank 1's is wrong
        monkeypatch.setattr("sae_plugins.resume.signals.age", lambda: age[0])
        told_on(0, 4, lambda: age.insert(0, 3600))
        return trained(*RUN, "--max_time", "1h")

    assert on_two(act) == [75, 75]
    assert saved() == ["step-000000005.safetensors"]


@pytest.mark.ci
@pytest.mark.parametrize("rank", [0, 1])
def test_what_torchrun_starts_again_after_a_pause_does_nothing(rank: int) -> None:
    """Its --max-restarts are for ranks that die; the time is over for all of them."""

    def act() -> list[int]:
        told_on(rank, 4, lambda: signal.raise_signal(signal.SIGUSR1))
        codes = [trained(*RUN)]
        ranks.forget()
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
        return [*codes, trained(*RUN)]

    assert on_two(act) == [[75, 75], [75, 75]]
    assert len(saved()) == 1


@pytest.mark.ci
def test_a_rank_that_is_told_before_the_first_step_ends_all_with_the_code() -> None:
    def act() -> int:
        if os.environ["RANK"] == "1":
            PluginTrainer.fit = lambda _: signal.raise_signal(  # type: ignore[method-assign]
                signal.SIGUSR1
            )
        return trained(*RUN)

    assert on_two(act) == [75, 75]


@pytest.mark.ci
@pytest.mark.parametrize(
    "step",
    [True, pytest.param(False, marks=pytest.mark.ci)],
    ids=["srun", "the batch script"],
)
def test_what_srun_starts_are_ranks_and_a_batch_script_is_none(
    step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables are Slurm's; a batch script has the number of tasks, too."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")

    def act() -> tuple[int, int]:
        rank = os.environ.pop("RANK")
        for name in ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"):
            del os.environ[name]
        slurm = {"PROCID": rank, "LOCALID": rank, "NTASKS": "2"} | (
            {"STEP_ID": "0"} if step else {}
        )
        os.environ.update({f"SLURM_{name}": value for name, value in slurm.items()})
        os.environ["MASTER_PORT"] = str(port)
        code = trained(*RUN, "--output_path", "run" if step else f"run-{rank}")
        return ranks.ranks().size, code

    assert on_two(act) == [((2 if step else 1), 0)] * 2
    assert ("data shards 8, read by 2 ranks" in said(0)) == step
    assert (said(1) == "") == step


@pytest.mark.ci
def test_a_run_on_ranks_goes_on_by_the_same_command_line_on_one(told: Told) -> None:
    def act() -> int:
        told_on(0, 4, lambda: signal.raise_signal(signal.SIGUSR1))
        return trained(*RUN, "--go_on")

    assert on_two(act) == [75, 75]
    assert main(["train", *RUN, "--go_on"]) == 0
    assert "data_shards: 8" in Path("run/run.yaml").read_text()
    assert main(["train", *RUN, "--data_shards", "4", "--go_on"]) == 2
    assert on_two(lambda: trained(*RUN, "--go_on")) == [0, 0]
