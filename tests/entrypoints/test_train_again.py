"""A run that pauses, and `--go_on`: the same command line starts it, goes on, and ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest

from sae_plugins.base.errors import Paused
from sae_plugins.entrypoints.main import main
from sae_plugins.framework.trainer import PluginTrainer
from sae_plugins.resume.files import files as checkpoints_in
from sae_plugins.runs import journal
from sae_plugins.runs import summary as summaries
from sae_plugins.runs.folder import OUR_CHECKPOINTS, UNFINISHED, RunFolder
from sae_plugins.runs.recorder import Recorder

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


@pytest.mark.parametrize("where", ["before", "after", "scoring"])
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


def test_a_run_whose_files_were_moving_ends(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "carry_out", failing)
        assert main(["train", *RUN, "--go_on"]) == 1
    assert main(["train", *RUN, "--go_on"]) == 0
    assert contents() == whole


@pytest.mark.parametrize("ended", [False, True])
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


@pytest.mark.parametrize("variable", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
@pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["plain", "overwrite"])
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


def test_what_was_stopped_before_it_could_replace_another_run_does(
    told: Told, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(5, *RUN, "--seed", "7", code=75)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(["train", *RUN]) == 2
    assert main(["train", *RUN, "--overwrite"]) == 0
    assert contents()["sae_weights.safetensors"] == whole["sae_weights.safetensors"]
