"""The folder of a run: what moves, what is removed, and what is left alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base import files
from sae_plugins.base.errors import PluginError
from sae_plugins.runs.folder import remove_run
from sae_plugins.runs.journal import JOURNAL
from sae_plugins.runs.recipe_file import write_copies
from sae_plugins.runs.run_folder import RunFolder

OF_A_RUN = {
    "files.json",
    *("sae_weights.safetensors", "sparsity.safetensors", "metrics.jsonl", "summary.json"),
    *("figures/loss_and_l0.png", "checkpoints/128/cfg.json", "checkpoints/256/cfg.json"),
    "cfg.json",
}
STEP = "step-000000005.safetensors"
RECIPE: dict[str, Any] = {"seed": 1}
TRIED = {**RECIPE, "plugin": ["plugin_files/a.py:A"]}
CODE = {"a.py": b"import b.c", "b/c.py": b"1"}
"""Of a plugin that is a file."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith("json") else f"of a run: {name}")


def trained(overwrite: bool = False, more: Iterable[str] = ()) -> RunFolder:
    """A run whose SAE is saved and scored."""
    folder = RunFolder(Path("run"))
    folder.check(overwrite)
    names = (*OF_A_RUN - {"files.json"}, *more)
    fill(folder.start(RECIPE, {}), *names, f"resume/{STEP}", f"resume/{STEP}.partial")
    fill(folder.unfinished, "training_summary.json", "export.partial/cfg.json")
    folder.note_trained({"found": {}, "seconds": 1.0})
    return folder


def found(folder: str = "run") -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_a_run_leaves_what_is_its_own_and_nothing_else() -> None:
    assert trained().finish() == []
    assert found() == {*OF_A_RUN, "run.yaml"}
    assert sorted(path.name for path in Path("run").iterdir() if path.is_dir()) == [
        *("checkpoints", "figures"),
    ]


class Failing:
    """Makes the file system fail at the move or removal of this number."""

    def __init__(self, at: int, patch: pytest.MonkeyPatch) -> None:
        self.at, self.count = at, 0
        patch.setattr(os, "replace", self.watched(os.replace))
        patch.setattr(Path, "unlink", self.watched(Path.unlink))

    def watched(self, act: Any) -> Any:
        def acting(*args: Any, **kwargs: Any) -> None:
            self.count += 1
            if self.count == self.at:
                raise OSError(5, "Input/output error")
            act(*args, **kwargs)

        return acting


def finish_failing(at: int, patch: pytest.MonkeyPatch) -> int:
    """A run ends in place of another, and fails at a move or a removal; how many there were."""
    earlier = trained(more=["checkpoints/512/cfg.json"])  # and of the next run no such one
    earlier.finish()
    earlier.release()
    folder = trained(overwrite=True)
    with patch.context() as context:
        failing = Failing(at, context)
        try:
            folder.finish()
        except PluginError:
            assert failing.count >= at
            said = folder.abandon() or ""
            assert said.endswith("go on with it: sae-plugins train --resume run")
    folder.release()
    return failing.count


def test_whoever_comes_next_finishes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    total = finish_failing(0, monkeypatch)
    assert total > 2 * len(OF_A_RUN)
    for at in range(1, total + 1):
        (tmp_path / f"{at}").mkdir()
        monkeypatch.chdir(tmp_path / f"{at}")
        finish_failing(at, monkeypatch)
        again = RunFolder(Path("run"))
        if again.reopen():  # nothing had moved
            assert again.trained == {"found": {}, "seconds": 1.0}
            assert again.finish() == []
        again.release()
        assert found() == {*OF_A_RUN, "run.yaml"}, at
        with pytest.raises(PluginError, match="is finished: there is nothing to go on with"):
            RunFolder(Path("run")).reopen()


def test_the_same_command_moves_the_rest_before_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish_failing(8, monkeypatch)
    assert (Path("run") / JOURNAL).is_file()
    with pytest.raises(PluginError, match="is not empty"):
        RunFolder(Path("run")).check(overwrite=False)
    assert found() == {*OF_A_RUN, "run.yaml"}


def test_all_is_on_the_disk_before_checkpoints_go(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained()
    done: list[str] = []
    flush, unlink = files._flush, Path.unlink

    def flushing(path: Path) -> None:
        done.append(f"flush {path}")
        flush(path)

    def removing(path: Path, **kwargs: Any) -> None:
        done.append(f"remove {path}")
        unlink(path, **kwargs)

    monkeypatch.setattr(files, "_flush", flushing)
    monkeypatch.setattr(Path, "unlink", removing)
    folder.finish()
    journal, checkpoint = (
        done.index("flush run/unfinished.json.partial"),
        done.index(f"remove run/unfinished/resume/{STEP}"),
    )
    for name in OF_A_RUN:
        assert f"flush run/unfinished/{name}" in done[:journal]
        assert f"flush {Path('run', name).parent}" in done[journal:checkpoint]
    assert done[-1] == "remove run/unfinished.json"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_all_has_moved(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, folder = os.replace, trained()
    fill(folder.unfinished, "resume/notes.txt")

    def replacing(source: Any, target: Any) -> None:
        signal.raise_signal(number)
        replace(source, target)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replacing)
    before = signal.signal(number, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            folder.finish()
    finally:
        signal.signal(number, before)
    assert found() == {*OF_A_RUN, "run.yaml", "unfinished/resume/notes.txt"}
    assert folder.abandon() == "the trained SAE is in run"


# -- files of others ---------------------------------------------------------------------------


def test_files_of_others_stay() -> None:
    folder = trained()
    others = {
        "resume/notes.txt",
        "resume/step-by-step.safetensors",
        "resume/step-5-copy.safetensors",
    }
    fill(folder.unfinished, *others, "thoughts.txt", "taken.txt", "figures/own.png")
    (folder.path / "taken.txt").write_text("mine")
    left = folder.finish()
    assert left == sorted(f"unfinished/{name}" for name in (*others, "taken.txt"))
    moved = {"thoughts.txt", "taken.txt", "figures/own.png"}
    assert found() == {*OF_A_RUN, "run.yaml", *left, *moved}
    assert (folder.path / "taken.txt").read_text() == "mine"


GROUP = "figures/metrics/reorder.png"
"""A figure of a group of metrics."""
ROWS = '{"step": 1, "reorder/event": 1}\n'
LOOKS_LIKE_IT = {
    *("figures/metrics/own.png", "figures/loss_and_l0-2.png", "plugin_files/own.py"),
    *("metrics_own.jsonl", "metrics-mine.jsonl", "metrics-2.jsonl", "training_summary_own.json"),
    *("checkpoints/best/cfg.json", "tensorboard-own/events.out.tfevents.0"),
    *("synthetic_model/own.json", "metrics-2/own.txt"),
}
"""What a user may put into a folder, and what earlier versions took for a run's."""


def written(version: str) -> None:
    """A run in `run/`, with everything that has a name of its own, of an earlier version or now."""
    folder = RunFolder(Path("run"))
    folder.check(overwrite=False)
    fill(folder.start(TRIED, CODE), *OF_A_RUN - {"files.json"}, GROUP)
    (folder.unfinished / "metrics.jsonl").write_text(ROWS)
    folder.note_trained({})
    assert folder.finish() == []
    folder.release()
    if version == "earlier":
        (folder.path / "files.json").unlink()


@pytest.mark.parametrize("version", ["earlier", "now"])
def test_what_looks_like_a_run_s_file_stays(version: str) -> None:
    written(version)
    fill(Path("run"), *LOOKS_LIKE_IT)
    if version == "earlier":  # when a second SAE may have trained there, too
        for name in ("metrics-2.jsonl", "figures/loss_and_l0-2.png"):
            Path("run", name).unlink()
    others = LOOKS_LIKE_IT & found()
    following = trained(overwrite=True)
    assert following.finish() == []
    assert found() == {*OF_A_RUN, "run.yaml", *others}
    following.release()
    remove_run(Path("run"))
    assert found() == others


def test_it_stays_also_where_it_was_put_during_a_run() -> None:
    folder = trained()
    fill(folder.unfinished, *LOOKS_LIKE_IT - {"metrics-2.jsonl", "figures/loss_and_l0-2.png"})
    others = LOOKS_LIKE_IT & {name.removeprefix("unfinished/") for name in found()}
    folder.finish()
    folder.release()
    trained(overwrite=True).finish()
    assert found() == {*OF_A_RUN, "run.yaml", *others}


def test_files_of_a_second_sae_are_a_run_s() -> None:
    own = {
        *("metrics-2.jsonl", "metrics_by_feature-2.jsonl", "figures/loss_and_l0-2.png"),
        *("tensorboard-2/events.out.tfevents.0", "figures/metrics-2/reorder.png"),
    }
    folder = trained(more=own)
    (folder.unfinished / "metrics-2.jsonl").write_text(ROWS)
    folder.finish()
    folder.release()
    assert own < found()
    trained(overwrite=True).finish()
    assert found() == {*OF_A_RUN, "run.yaml"}


@pytest.mark.parametrize("listed", ["[", '{"files": 1}', '{"files": ["../kept.txt", "/kept.txt"]}'])
def test_a_list_that_cannot_be_trusted_removes_nothing_else(listed: str) -> None:
    written("now")
    Path("run/files.json").write_text(listed)
    Path("kept.txt").touch()
    trained(overwrite=True).finish()
    assert Path("kept.txt").exists()
    assert {*OF_A_RUN, "run.yaml"} <= found()


def test_a_run_that_an_earlier_version_was_moving_ends() -> None:
    written("earlier")
    fill(Path("run"), "metrics_own.jsonl")
    Path("run/unfinished").mkdir()
    for name in ("cfg.json", "metrics.jsonl"):
        Path("run", name).rename(Path("run/unfinished", name))
    moves = ["metrics.jsonl", "cfg.json", "sae_weights.safetensors"]
    Path("run", JOURNAL).write_text(json.dumps({"moves": moves}))
    assert not RunFolder(Path("run")).reopen()
    assert {*moves, "metrics_own.jsonl"} <= found()
    assert not found() & {JOURNAL, "unfinished/cfg.json", "sparsity.safetensors"}


def test_a_run_that_is_given_up_leaves_them() -> None:
    folder = trained()
    fill(folder.unfinished, "resume/notes.txt")
    folder.release()
    RunFolder(Path("run")).check(overwrite=True)
    RunFolder(Path("run")).start({"seed": 2}, {})
    assert "unfinished-1/resume/notes.txt" in found()
    assert f"unfinished-1/resume/{STEP}" not in found()
    assert "unfinished-1/cfg.json" in found()


def test_a_run_is_removed_without_them() -> None:
    folder = trained()
    fill(folder.unfinished, "resume/notes.txt")
    remove_run(folder.unfinished)
    assert found() == {"unfinished/resume/notes.txt"}
    (folder.unfinished / "resume/notes.txt").unlink()
    remove_run(folder.unfinished)
    assert not folder.unfinished.exists()


# -- a process that was killed -----------------------------------------------------------------


def killed(*records: str) -> None:
    """After it had begun, and had no checkpoint."""
    folder = RunFolder(Path("run"))
    folder.check(overwrite=False)
    fill(folder.start(TRIED, CODE), "metrics.jsonl", *records)
    folder.release()


def again(recipe: Mapping[str, Any], code: Mapping[str, bytes] = CODE) -> set[str]:
    folder = RunFolder(Path("run"))
    folder.check(overwrite=False)
    folder.start(recipe, code)
    folder.release()
    return found() - {f"unfinished/plugin_files/{name}" for name in code}


def test_the_same_run_repeats_it() -> None:
    killed()
    assert again(TRIED) == {"unfinished/run.yaml"}


def test_another_run_keeps_its_records() -> None:
    killed()
    kept = {"unfinished-1/run.yaml", "unfinished-1/metrics.jsonl"}
    kept |= {f"unfinished-1/plugin_files/{name}" for name in CODE}
    assert again({"seed": 2}) == {"unfinished/run.yaml", *kept}


@pytest.mark.parametrize("code", [{}, {**CODE, "a.py": b"2"}, {**CODE, "c.py": b"1"}])
def test_the_same_recipe_with_other_code_is_another_run(code: dict[str, bytes]) -> None:
    killed()
    kept = {"run.yaml", "metrics.jsonl", *(f"plugin_files/{name}" for name in CODE)}
    assert again(TRIED, code) == {"unfinished/run.yaml", *(f"unfinished-1/{n}" for n in kept)}


def test_code_takes_the_place_of_earlier_code(tmp_path: Path) -> None:
    write_copies(tmp_path, {**CODE, "sub/c.py": b"1"})
    (tmp_path / "plugin_files/notes.txt").touch()
    write_copies(tmp_path, {"a.py": b"2"})
    left = {path.name for path in (tmp_path / "plugin_files").rglob("*")}
    assert left == {"a.py", "notes.txt"}
    assert (tmp_path / "plugin_files/a.py").read_bytes() == b"2"


def test_a_secret_in_copied_code_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = {"a/idea.py": b"import x\napi_key = 'abc'", "b.py": b"api_key = read()"}
    for run in ("one", "two"):
        write_copies(tmp_path / run, code)
    (told,) = caplog.messages
    assert told.startswith("a/idea.py, line 2, seems to hold a secret, and is copied as it is")


def test_what_a_run_recorded_that_failed_stays() -> None:
    folder = RunFolder(Path("run"))
    folder.check(overwrite=False)
    fill(folder.start(RECIPE, {}), "metrics.jsonl")
    assert folder.abandon() == "what the run recorded until then is in run/unfinished"
    folder.release()
    kept = {"unfinished-1/run.yaml", "unfinished-1/metrics.jsonl"}
    assert again(TRIED) == {"unfinished/run.yaml", *kept}


@pytest.mark.parametrize("left", ["unfinished-0", "unfinished", "unfinished/resume"])
def test_what_it_leaves_before_it_begins_is_in_nobodys_way(left: str) -> None:
    Path("run", left).mkdir(parents=True)
    assert again(TRIED) == {"unfinished/run.yaml"}
    assert [path.name for path in Path("run").iterdir()] == ["unfinished"]
