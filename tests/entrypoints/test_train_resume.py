"""`sae-plugins train --resume`: a run that is killed, at any moment, ends as if it had not been."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from datasets import Array2D, Dataset, Features
from tqdm import tqdm

from sae_plugins.entrypoints.main import main
from sae_plugins.framework.fast import choice
from sae_plugins.resume.files import checkpoint
from sae_plugins.resume.files import files as checkpoints_in
from sae_plugins.runs.folder import OUR_CHECKPOINTS, UNFINISHED
from sae_plugins.runs.recorder import Recorder

FORK = multiprocessing.get_context("fork")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
METHOD = [
    *("--plugin", "hybrid-order", "--reorder.start", "5", "--reorder.interval", "7"),
    *("--recorder.every", "1", "--checkpoint_every", "3"),
]
ON_A_LANGUAGE_MODEL = [
    *("--training_tokens", "3200", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "32", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "256", *METHOD),
]
RUNS = {
    "language model": ON_A_LANGUAGE_MODEL,
    "fast": [*ON_A_LANGUAGE_MODEL, "--fast_step", "--l1_coefficient", "30", "--lr", "1e-2"],
    "synthetic": [
        *("--model_name", "synthetic:toy", "--training_tokens", "4800", "--d_sae", "64"),
        *("--train_batch_size_tokens", "96", "--eval_samples", "500", "--heldout_tokens", "500"),
        *("--n_batches_for_norm_estimate", "2", *METHOD),
    ],
}
"""50 steps each; hybrid-order accumulates 4 batches, so that most checkpoints are in a window."""
DRAWN = ("synthetic",)
"""The kinds whose figures are drawn."""


@pytest.fixture(autouse=True)
def folder(tiny_world: Any, sketched: None, tmp_path: Path) -> Path:
    """An empty working directory, and a tiny model for the embedded world."""
    return tmp_path


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of run: its figures are drawn or not; a fast one lists pairs from some step on."""
    if request.param in DRAWN:
        request.getfixturevalue("drawn")
    if request.param == "fast":
        monkeypatch.setattr(choice, "LOOK_EVERY", 3)
        monkeypatch.setitem(choice.SPARSE_BELOW, ("cpu", "float32"), 0.45)
    return str(request.param)


def train(*arguments: str, code: int = 0) -> None:
    assert main(["train", *arguments]) == code


# -- a process that is killed ------------------------------------------------------------------


def _child(arguments: list[str], number: signal.Signals | None = None, row: int = 0) -> None:
    # tqdm's own lock is shared among forked processes, and stays locked when one is killed
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)  # its pool of threads is no more, and two threads would make another
    if number is not None:
        _send_at(number, row)
    with Path("log.txt").open("a") as sys.stdout:
        sys.stderr = sys.stdout
        code = main(["train", *arguments])
    os._exit(code)


def _send_at(number: signal.Signals, row: int) -> None:
    """This process gets a signal when its run has written so many rows."""
    stop = faults.flush_then(row, lambda: os.kill(os.getpid(), number))
    Recorder.flush = stop  # type: ignore[method-assign]


def stopped(number: signal.Signals, row: int, *arguments: str) -> None:
    """Run the command in a process of its own, which gets a signal when a row is written."""
    # a fork: importing SAELens takes ten seconds
    process = FORK.Process(target=_child, args=(list(arguments), number, row))
    process.start()
    process.join(300)
    expected = -9 if number == signal.SIGKILL else 130
    assert process.exitcode == expected, Path("log.txt").read_text()


def rows_written(run: Path, since: float) -> int:
    """Rows of a file that has been written to since then; a resumed run finds one."""
    metrics = run / UNFINISHED / "metrics.jsonl"
    try:
        return metrics.read_bytes().count(b"\n") if metrics.stat().st_mtime > since else -1
    except OSError:
        return -1


def killed(run: Path, number: signal.Signals, after_row: int, *arguments: str) -> int:
    """Run the command in a process of its own, and kill it; its exit code, 0 if it was faster."""
    process = FORK.Process(target=_child, args=(list(arguments),))
    started = time.time()
    process.start()
    while process.is_alive() and rows_written(run, started) < after_row:
        time.sleep(0.001)
    time.sleep(random.random() / 100)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(300)
    assert process.exitcode is not None, "it does not stop"
    return process.exitcode


def contents(run: Path) -> dict[str, Any]:
    """What a run leaves, without the times that it took and where it is."""
    return faults.contents(run, "_path")


Made = Callable[[str, Callable[[], None]], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A function that gives a copy of a folder, which is made when it is first asked for.

    Commands leave and read relative paths only, so that the copy is as good as the folder.
    """
    folders: dict[str, Path] = {}

    def copy(folder: str, make: Callable[[], None]) -> Path:
        if folder not in folders:
            make()
            folders[folder] = shutil.copytree(folder, tmp_path_factory.mktemp("made") / "folder")
            shutil.rmtree(folder)
        return Path(shutil.copytree(folders[folder], folder))

    return copy


def check(kind: str, number: signal.Signals, seed: int, made: Made) -> None:
    """Kill the run twice at random moments, let it end, and compare."""
    whole = f"whole {kind}"
    made(whole, lambda: train(*RUNS[kind], "--output_path", whole))
    random.seed(seed)
    run, first = Path("run"), random.randint(0, 49)
    command = [*RUNS[kind], "--output_path", "run"]
    for after_row in (first, random.randint(first, 49)):
        code = killed(run, number, after_row, *command)
        if code == 0:
            break
        assert code == (-9 if number == signal.SIGKILL else 130), Path("log.txt").read_text()
        can_go_on = bool(checkpoints_in(run / UNFINISHED / OUR_CHECKPOINTS))
        if number != signal.SIGKILL and can_go_on:
            said = Path("log.txt").read_text()
            assert "go on with it: sae-plugins train --resume run" in said
        command = ["--resume", "run"] if can_go_on else command
    else:
        train(*command)
    assert contents(run) == contents(Path(whole)), f"{kind}, {number.name}, seed {seed}"


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("language model", signal.SIGINT),
        pytest.param("language model", signal.SIGTERM, marks=pytest.mark.ci),
        pytest.param("language model", signal.SIGKILL, marks=pytest.mark.ci),
        pytest.param("synthetic", signal.SIGKILL, marks=pytest.mark.ci),
        pytest.param("fast", signal.SIGKILL, marks=pytest.mark.ci),
    ],
    indirect=["kind"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    kind: str, number: signal.Signals, made: Made
):
    check(kind, number, 1, made)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kind", RUNS, indirect=True)
def test_a_run_may_be_killed_at_any_moment(
    kind: str, number: signal.Signals, seed: int, made: Made
):
    check(kind, number, 1000 + seed, made)


# -- on other data -----------------------------------------------------------------------------

PLAIN = [
    *("--training_tokens", "1280", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16", "--d_sae", "32"),
    *("--normalize_activations", "none", "--heldout_tokens", "64", *METHOD),
]
OTHER = {
    "a stream": ["--dataset_path", "data", "--streaming"],
    "cached": ["--use_cached_activations", "--cached_activations_path", "cached"],
    "begun with another SAE": ["--from_pretrained_path", "first"],
}


@pytest.mark.ci
@pytest.mark.parametrize("on", OTHER)
def test_a_run_on_other_data_goes_on_as_if_nothing_had_happened(on: str, tiny_world: Any):
    rows = tiny_world.text("train")["tokens"]
    Path("data").mkdir()
    for shard in range(4):
        lines = (json.dumps({"tokens": row}) for row in rows[shard::4])
        Path("data", f"{shard}.jsonl").write_text("\n".join(lines))
    hook = "blocks.1.hook_resid_post"
    _, acts = tiny_world.model().run_with_cache(torch.tensor(rows), names_filter=[hook])
    features = Features({hook: Array2D((16, tiny_world.d_model), "float32")})
    Dataset.from_dict({hook: acts[hook].numpy()}, features=features).save_to_disk("cached")
    if on == "begun with another SAE":
        train(*PLAIN, "--seed", "3", "--output_path", "first")
    train(*PLAIN, *OTHER[on], "--output_path", "whole")
    stopped(signal.SIGKILL, 11, *PLAIN, *OTHER[on], "--output_path", "run")
    train("--resume", "run")
    assert contents(Path("run")) == contents(Path("whole"))


# -- what is refused, and what is said ---------------------------------------------------------

SHORT = [*RUNS["language model"], "--training_tokens", "1280"]
"""20 steps."""


@pytest.fixture
def unfinished(made: Made) -> Path:
    """A run that was interrupted after ten steps."""
    return made("run", lambda: stopped(signal.SIGTERM, 10, *SHORT, "--output_path", "run"))


@pytest.fixture
def whole(made: Made) -> Path:
    """The same run, uninterrupted."""
    return made("whole", lambda: train(*SHORT, "--output_path", "whole"))


@pytest.fixture
def earlier(made: Made) -> Path:
    """A finished run of another seed."""
    return made("earlier", lambda: train(*SHORT, "--seed", "1", "--output_path", "earlier"))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    train(*arguments, code=2)
    return capsys.readouterr().err


@pytest.mark.ci
def test_what_cannot_be_resumed_is_refused(whole: Path, capsys: pytest.CaptureFixture[str]):
    assert "there is no such folder" in refusal(capsys, "--resume", "nowhere")
    assert "--resume whole is finished" in refusal(capsys, "--resume", "whole")
    Path("other").mkdir()
    assert "holds no unfinished run" in refusal(capsys, "--resume", "other")
    early = [*SHORT, "--checkpoint_every", "0", "--output_path", "early"]
    stopped(signal.SIGKILL, 5, *early)
    said = refusal(capsys, "--resume", "early")
    assert "before its first checkpoint" in said
    assert "sae-plugins train --recipe early/unfinished/run.yaml --output_path early" in said
    train("--recipe", "early/unfinished/run.yaml", "--output_path", "early")


def test_a_resumed_run_must_be_the_one_that_began(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
):
    said = refusal(capsys, "--resume", "run", "--lr", "0.5", "--reorder.interval", "8")
    assert "--lr 0.5, it began with 0.001" in said
    assert "--reorder.interval 8, it began with 7" in said
    for flags in (["--recipe", "hybrid-order"], ["--output_path", "other"], ["--overwrite"]):
        assert f"{flags[0]} cannot be combined with --resume" in refusal(
            capsys, "--resume", "run", *flags
        )
    recipe = unfinished / UNFINISHED / "run.yaml"
    edited = recipe.read_text().replace("seed: 42", "seed: 43")
    edited = edited.replace("reorder.window: 10", "reorder.window: 12")
    recipe.write_text(edited)
    said = refusal(capsys, "--resume", "run")
    assert "step-0" in said
    assert "seed: 42 in the checkpoint, 43 now" in said
    assert "plugins.reorder.window: 10 in the checkpoint, 12 now" in said
    recipe.write_text(edited.replace("seed: 43", "seed: 42").replace("window: 12", "window: 10"))
    train("--resume", "run", "--lr", "1e-3", "--seed", "42")  # what is the same may be said
    assert (unfinished / "cfg.json").exists()


def test_a_folder_with_an_unfinished_run_is_not_overwritten(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
):
    said = refusal(capsys, *SHORT, "--output_path", "run")
    assert "go on with it (sae-plugins train --resume run)" in said
    train(*SHORT, "--output_path", "run", "--overwrite")
    assert (unfinished / f"{UNFINISHED}-1" / "metrics.jsonl").exists()
    assert not list(unfinished.rglob("step-*"))


def test_a_damaged_checkpoint_is_skipped_and_named(
    unfinished: Path, whole: Path, caplog: pytest.LogCaptureFixture
):
    newest, *_ = found = checkpoints_in(unfinished / UNFINISHED / OUR_CHECKPOINTS)
    assert len(found) == 2
    newest.write_bytes(newest.read_bytes()[:-100])
    train("--resume", "run")
    assert f"{newest.name} cannot be read" in caplog.text
    assert contents(Path("run")) == contents(whole)


def test_only_damaged_checkpoints_are_an_error_that_names_them(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
):
    for path in checkpoints_in(unfinished / UNFINISHED / OUR_CHECKPOINTS):
        path.write_bytes(b"nothing")
    said = refusal(capsys, "--resume", "run")
    assert path.name in said
    assert "start the run again" in said
    assert (unfinished / UNFINISHED / "metrics.jsonl").exists()


@pytest.mark.parametrize("every", ["often", "-3", "10 hours"])
def test_an_interval_that_is_none_is_refused(every: str, capsys: pytest.CaptureFixture[str]):
    said = refusal(capsys, *SHORT, f"--checkpoint_every={every}")
    assert f"--checkpoint_every: '{every}' is no interval" in said


def test_the_newest_are_kept_and_gone_at_the_end():
    arguments = ("--keep_checkpoints", "3", "--output_path", "run")
    stopped(signal.SIGTERM, 15, *SHORT, *arguments)
    assert len(checkpoints_in(Path("run", UNFINISHED, OUR_CHECKPOINTS))) == 3
    train("--resume", "run")
    assert not list(Path("run").rglob("step-*"))
    assert not Path("run", UNFINISHED).exists()


def test_a_checkpoint_is_written_when_it_is_asked_for_only_at_interruptions():
    run = Path("run")
    stopped(signal.SIGINT, 15, *SHORT, "--checkpoint_every", "0", "--output_path", "run")
    assert len(checkpoints_in(run / UNFINISHED / OUR_CHECKPOINTS)) == 1
    train("--resume", "run")
    train(*SHORT, "--checkpoint_every", "0", "--output_path", "whole")
    assert contents(run) == contents(Path("whole"))


@pytest.mark.ci
def test_a_buffer_that_is_refilled_makes_small_checkpoints_and_another_run():
    sizes = {}
    for buffer in ("exact", "refill"):
        command = [*SHORT, "--resume_buffer", buffer, "--output_path", buffer]
        stopped(signal.SIGTERM, 10, *command)
        newest, *_ = checkpoints_in(Path(buffer, UNFINISHED, OUR_CHECKPOINTS))
        sizes[buffer] = newest.stat().st_size
        train("--resume", buffer)
    assert sizes["refill"] < sizes["exact"] - 15_000
    weights = [Path(name, "sae_weights.safetensors").read_bytes() for name in sizes]
    assert weights[0] != weights[1]


@pytest.mark.ci
def test_the_log_at_weights_and_biases_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    wandb.teardown()  # of earlier tests: a service cannot be shared with a forked process
    log = ("--log_to_wandb", "--wandb_log_frequency", "1")
    stopped(signal.SIGTERM, 10, *SHORT, *log, "--output_path", "run")
    (first,) = Path("wandb").glob("offline-run-*")
    first.rename(re.sub(r"\d{8}_\d{6}", "20240101_000000", str(first)))  # named after the second
    train("--resume", "run")
    ids = {path.name.rpartition("-")[2] for path in Path("wandb").glob("offline-run-*")}
    assert len(list(Path("wandb").glob("offline-run-*"))) == 2
    assert len(ids) == 1


def test_sae_lens_own_checkpoints_still_resume():
    plain = list(SHORT[: SHORT.index("--plugin")])
    plain += ["--training_tokens", "1280", "--n_checkpoints", "3"]
    train(*plain, "--output_path", "first")
    own = sorted(Path("first", "checkpoints").iterdir(), key=lambda path: int(path.name))
    train(*plain, "--output_path", "second", "--resume_from_checkpoint", str(own[0]))
    steps = [int(path.name) for path in Path("second", "checkpoints").iterdir()]
    assert sorted(steps) == sorted(int(path.name) for path in own[1:])


@pytest.mark.ci
def test_a_run_that_began_at_sae_lens_checkpoint_goes_on_from_its_own():
    plain = [*SHORT[: SHORT.index("--plugin")], "--training_tokens", "1280"]
    train(*plain, "--n_checkpoints", "3", "--output_path", "first")
    own = min(Path("first", "checkpoints").iterdir(), key=lambda path: int(path.name))
    began = [*plain, "--resume_from_checkpoint", str(own), "--recorder.every", "1"]
    stopped(signal.SIGTERM, 5, *began, "--output_path", "run")
    train("--resume", "run")
    train(*began, "--output_path", "whole")
    one, other = contents(Path("run")), contents(Path("whole"))
    for config in (one, other):  # where it began is in run.yaml
        config["runner_cfg.json"][0].pop("resume_from_checkpoint")
    assert one == other


@pytest.mark.parametrize(
    "moved",
    [*(pytest.param(moved, marks=pytest.mark.ci) for moved in (0, 2, 6)), 4],
)
def test_a_run_killed_while_its_files_move_to_their_place_can_go_on(
    moved: int,
    unfinished: Path,
    whole: Path,
    earlier: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from sae_plugins.runs import journal

    for path in earlier.iterdir():
        path.rename(unfinished / path.name)  # as with --overwrite
    count, replace = iter(range(100)), os.replace

    def replacing(source: Any, target: Any) -> None:
        if Path(target).parent == unfinished and next(count) == moved:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(journal.os, "replace", replacing)
        train("--resume", "run", code=130)
    train("--resume", "run")
    assert contents(unfinished) == contents(whole)


@pytest.mark.parametrize(("every", "error"), [("3", KeyboardInterrupt), ("0", RuntimeError)])
def test_a_run_that_ended_while_it_was_scored_is_not_trained_again(
    every: str,
    error: type[BaseException],
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from sae_plugins.framework.trainer import PluginTrainer
    from sae_plugins.runs import language_model

    def failing(*_: Any) -> None:
        raise error

    command = [*SHORT, "--checkpoint_every", every, "--output_path", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(language_model, "heldout_metrics", failing)
        if error is KeyboardInterrupt:
            train(*command, code=130)
        else:
            with pytest.raises(RuntimeError):
                train(*command)
    advice = "the trained SAE is in run/unfinished; go on with it: sae-plugins train --resume run"
    assert advice in capsys.readouterr().out
    assert "go on with it (sae-plugins train --resume run)" in refusal(capsys, *command)
    monkeypatch.setattr(PluginTrainer, "step", failing)
    train("--resume", "run")
    assert "explained_variance" in capsys.readouterr().out
    found, wanted = contents(Path("run")), contents(whole)
    for run in (found, wanted):  # which says how often it is saved
        del run["run.yaml"]
    assert found == wanted


def test_saelens_checkpoints_are_on_the_disk_before_ours_go(monkeypatch: pytest.MonkeyPatch):
    from sae_plugins.base import files

    flushed = []
    monkeypatch.setattr(files, "_flush", lambda path: flushed.append(str(path)))
    train(*SHORT, "--n_checkpoints", "1", "--output_path", "run")
    (own,) = Path("run", "checkpoints").iterdir()
    step = int(own.name) // 64
    after = checkpoint(Path("run", UNFINISHED, OUR_CHECKPOINTS), step + -step % 3)
    before = flushed[: flushed.index(f"{after}.partial")]
    names = {str(file.absolute()) for file in own.iterdir()}
    assert {path.replace(f"/{UNFINISHED}/", "/") for path in before} >= names


@pytest.mark.ci
def test_what_an_interrupted_finish_leaves_behind_is_in_nobodys_way(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
):
    from sae_plugins.runs import run_folder as runs

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "remove_checkpoints", interrupted)
        train("--resume", "run", code=130)
    assert list((unfinished / UNFINISHED / OUR_CHECKPOINTS).iterdir())
    train(*SHORT, "--output_path", "run", code=2)  # an SAE is there
    assert not list(unfinished.glob("unfinished*"))
    train(*SHORT, "--output_path", "run", "--overwrite")
    assert not list(unfinished.glob("unfinished*"))


def test_saelens_checkpoints_go_where_they_went():
    own = ("--n_checkpoints", "3", "--checkpoint_path", "own")
    stopped(signal.SIGTERM, 8, *SHORT, *own, "--output_path", "run")
    before = list(Path("own").iterdir())
    train("--resume", "run")
    assert len(list(Path("own").iterdir())) == 3 > len(before) > 0
