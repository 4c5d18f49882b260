"""The folder of a run: what moves, what is removed, and what is left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base import files
from sae_plugins.base.errors import PluginError
from sae_plugins.runs.folder import RunFolder, remove_run
from sae_plugins.runs.journal import JOURNAL
from sae_plugins.runs.recipe_file import write_copies

OF_A_RUN = {
    *("sae_weights.safetensors", "sparsity.safetensors", "metrics.jsonl", "summary.json"),
    *("figures/loss_and_l0.png", "checkpoints/128/cfg.json", "checkpoints/256/cfg.json"),
    "cfg.json",
}
STEP = "step-000000005.safetensors"
RECIPE = {"seed": 1}
CODE = {"a.py": b"1", "b/c.py": b"1"}
"""Of a plugin that is a file."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith("json") else f"of a run: {name}")


def trained(overwrite: bool = False) -> RunFolder:
    """A run whose SAE is saved and scored."""
    folder = RunFolder(Path("run"))
    folder.check(overwrite)
    fill(folder.start(RECIPE, {}), *OF_A_RUN, f"resume/{STEP}", f"resume/{STEP}.partial")
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
    earlier = trained()
    earlier.finish()
    earlier.release()
    fill(Path("run"), "checkpoints/512/cfg.json")  # of this earlier run, and not of the next
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
    fill(folder.start(RECIPE, CODE), "metrics.jsonl", *records)
    folder.release()


def again(recipe: dict[str, int], code: Mapping[str, bytes] = CODE) -> set[str]:
    folder = RunFolder(Path("run"))
    folder.check(overwrite=False)
    folder.start(recipe, code)
    folder.release()
    return found() - {f"unfinished/plugin_files/{name}" for name in code}


def test_the_same_run_repeats_it() -> None:
    killed()
    assert again(RECIPE) == {"unfinished/run.yaml"}


def test_another_run_keeps_its_records() -> None:
    killed()
    kept = {"unfinished-1/run.yaml", "unfinished-1/metrics.jsonl"}
    kept |= {f"unfinished-1/plugin_files/{name}" for name in CODE}
    assert again({"seed": 2}) == {"unfinished/run.yaml", *kept}


@pytest.mark.parametrize("code", [{}, {**CODE, "a.py": b"2"}, {**CODE, "c.py": b"1"}])
def test_the_same_recipe_with_other_code_is_another_run(code: dict[str, bytes]) -> None:
    killed()
    kept = {"run.yaml", "metrics.jsonl", *(f"plugin_files/{name}" for name in CODE)}
    assert again(RECIPE, code) == {"unfinished/run.yaml", *(f"unfinished-1/{n}" for n in kept)}


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
    assert again(RECIPE) == {"unfinished/run.yaml", *kept}


@pytest.mark.parametrize("left", ["unfinished-0", "unfinished", "unfinished/resume"])
def test_what_it_leaves_before_it_begins_is_in_nobodys_way(left: str) -> None:
    Path("run", left).mkdir(parents=True)
    assert again(RECIPE) == {"unfinished/run.yaml"}
    assert [path.name for path in Path("run").iterdir()] == ["unfinished"]
