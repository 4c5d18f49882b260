"""SAEs in lockstep that are interrupted and go on end as if they had not been."""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lockstep_arms import ARMS, TOY, AtStepThree, Raises, arms, same, with_plugin

from sae_plugins import PluginError, world
from sae_plugins.base.files import lock
from sae_plugins.base.kept import Folder
from sae_plugins.base.secrets import reason_of
from sae_plugins.resume.files import files
from sae_plugins.resume.together import Kept, discard_others
from sae_plugins.runs import lockstep, lockstep_arm, lockstep_checkpoints, memory
from sae_plugins.runs.lockstep import LockstepRun, train
from sae_plugins.runs.recorder import Recorder

KEPT = Kept(Path("kept"), "4")
"""Checkpoints after 4, 8 and 12 of 16 steps."""


@pytest.fixture(autouse=True)
def _folder(tiny_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, a tiny model for the embedded world, and no figures drawn."""
    monkeypatch.setattr(Recorder, "draw_figures", lambda *_: None)


class Killed(BaseException):
    """In place of a signal that nobody can answer."""


def kill_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


def elsewhere(together: list[LockstepRun], folder: str) -> list[LockstepRun]:
    return [replace(one, folder=Path(folder) / one.name) for one in together]


def checkpoints() -> list[Path]:
    return [file for place in sorted(KEPT.folder.glob("*")) for file in files(place)]


def steps_of(together: list[LockstepRun], kept: Kept = KEPT) -> list[int]:
    """Train, and say which steps were made."""
    made: list[int] = []
    assert train(together, lambda done, total: made.append(done), checkpoints=kept) == {}
    return made


def of_all_kinds(flags: dict[str, str]) -> list[LockstepRun]:
    """Arms, one of which is a control, and one of which is scored on what follows its training."""
    together = arms(flags)
    control = replace(together[0], name="control", folder=Path("lockstep/control"), untrained=True)
    tuning = replace(together[0], name="tuning", folder=Path("lockstep/tuning"), tuning_tokens=100)
    return [control, *together, tuning]


def check_goes_on(together: list[LockstepRun], stop: int, made: list[int]) -> None:
    """Interrupted after a step, the arms go on from a checkpoint, and end as without."""
    assert train(together) == {}
    again = elsewhere(together, "again")
    with pytest.raises(Killed):
        train(again, kill_at(stop), checkpoints=KEPT)
    assert len(checkpoints()) == 1
    assert steps_of(again) == made
    for one, other in zip(together, again, strict=True):
        assert same(one.folder, other.folder), one.name
    assert [*KEPT.folder.iterdir()] == []
    assert sorted(path.name for path in Path("again").iterdir()) == sorted(o.name for o in again)


def test_interrupted_they_go_on_as_if_they_had_not_been() -> None:
    """One has ended before the checkpoint, and one accumulates gradients over it."""
    short = "--training_tokens 256 --architecture topk --k 4"
    together = of_all_kinds({"hybrid-order": ARMS["hybrid-order"], "short": short})
    check_goes_on(together, stop=11, made=[*range(9, 19)])


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stop, marks=pytest.mark.slow if place else pytest.mark.ci)
        for place, stop in enumerate(random.Random(0).sample(range(1, 17), 3))
    ],
)
def test_all_kinds_of_arms_go_on_from_any_step(stop: int) -> None:
    """Also while one only reads what follows its training, and sets thresholds by it."""
    every = Kept(KEPT.folder, "1")
    calibrated = "--architecture batchtopk --k 4 --calibrate_threshold true --calibrate_tokens 300"
    together = of_all_kinds({**ARMS, "follows": f"{calibrated} --training_tokens 512"})
    assert together[-2].following_tokens == 300
    assert train(together) == {}
    again = elsewhere(together, "again")
    with pytest.raises(Killed):
        train(again, kill_at(stop), checkpoints=every)
    assert steps_of(again, every)[0] == stop  # of whose end there is no checkpoint yet
    for one, other in zip(together, again, strict=True):
        assert same(one.folder, other.folder), one.name


@pytest.mark.ci
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("--normalize_activations covariance_whitening", id="whitened"),
        pytest.param("--data_shards 2 --n_batches_in_buffer 16", id="shards"),
        pytest.param("--normalize_activations none", id="none"),
        pytest.param(TOY, id="toy"),
        pytest.param(f"{TOY} --data_shards 2", id="toy-shards"),
    ],
)
def test_they_go_on_in_all_kinds_of_data(flags: str) -> None:
    together = arms({"l1": flags, "topk": f"{flags} --architecture topk --k 4"})
    check_goes_on(together, stop=10, made=[*range(9, 17)])


@pytest.mark.ci
def test_they_go_on_where_activations_are_kept(tmp_path: Path) -> None:
    together = arms({"l1": "", "topk": ARMS["topk"]})
    cache = Folder(tmp_path / "cache", 10**9)
    settings = [replace(one.setup.settings, activation_cache=cache) for one in together]
    first = together[0].setup.sharing(settings[0])
    together = [
        replace(together[0], setup=first),
        replace(together[1], setup=first.sharing(settings[1])),
    ]
    check_goes_on(together, stop=10, made=[*range(9, 17)])


# -- not all of them ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "ends_all"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
    ],
)
def test_a_fault_of_the_machine_is_no_arm_s_and_all_go_on_from_their_checkpoint(
    error: Exception, ends_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = arms({"fine": "--training_tokens 512", "hit": "--training_tokens 512"})
    step = lockstep_arm.Training.step

    def failing(training: Any, *batch: Any) -> None:
        if training.arm.name == "hit" and training.trainer.n_training_steps == 6:
            raise error
        step(training, *batch)

    with monkeypatch.context() as during:
        during.setattr(lockstep_arm.Training, "step", failing)
        if not ends_all:
            assert train(together, checkpoints=KEPT) == {"hit": error}
            return
        with pytest.raises(type(error), match="CUDA error"):
            train(together, checkpoints=KEPT)
    assert not together[0].folder.exists()
    assert steps_of(together)[0] > 1
    assert all(one.folder.exists() for one in together)


@pytest.mark.ci
@pytest.mark.parametrize("stop", [5, 2])
def test_an_arm_fails_alone_before_or_after_the_checkpoint(stop: int) -> None:
    fine, wild = arms({"fine": "--training_tokens 512", "wild": "--training_tokens 512"})
    wild = with_plugin(wild, Raises)
    often = Kept(KEPT.folder, "1")
    failures = train([wild, fine])
    again = elsewhere([wild, fine], "again")
    with pytest.raises(Killed):
        train(again, kill_at(stop), checkpoints=often)
    found = train(again, checkpoints=often)
    assert {name: reason_of(error) for name, error in found.items()} == {
        name: reason_of(error) for name, error in failures.items()
    }
    assert same(fine.folder, again[1].folder)
    assert [path.name for path in Path("again").iterdir()] == ["fine"]
    assert [*KEPT.folder.iterdir()] == []


@pytest.mark.ci
def test_what_is_in_its_place_or_new_changes_nothing_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a kill between two SAEs that move to their places."""
    together = arms({"one": "", "two": "", "three": "--training_tokens 512"})
    assert train(together) == {}
    again = elsewhere(together, "again")
    finish, moved = lockstep._finish, list[LockstepRun]()

    def once(arm: LockstepRun, *rest: Any) -> None:
        if moved:
            raise Killed
        moved.append(arm)
        finish(arm, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(lockstep, "_finish", once)
        with pytest.raises(Killed):
            train(again[1:], checkpoints=KEPT)
    assert steps_of([again[0], again[2]]) == [*range(9, 25)], "that of `one` alone"
    for one, other in zip(together, again, strict=True):
        assert same(one.folder, other.folder), one.name


@pytest.mark.ci
def test_a_second_pass_goes_on_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    together = arms({"one": "--training_tokens 512", "two": ""})
    assert train(together) == {}
    again = elsewhere(together, "again")
    setup = together[0].setup
    room = 1.5 * memory.bytes_in_training(setup.sae_config) / lockstep.SHARE_OF_MEMORY
    room += memory.beside_saes(setup.needs(), "cpu")
    monkeypatch.setattr(lockstep, "memory_of", lambda device: room)
    with pytest.raises(Killed):
        train(again, kill_at(8 + 10), checkpoints=KEPT)
    assert same(together[0].folder, again[0].folder)
    assert steps_of(again[1:]) == [*range(9, 17)]
    assert same(together[1].folder, again[1].folder)


@pytest.mark.ci
def test_less_memory_than_before_has_them_start_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    together = arms({"one": "--training_tokens 512", "two": "--training_tokens 512"})
    with pytest.raises(Killed):
        train(together, kill_at(6), checkpoints=KEPT)
    monkeypatch.setattr(lockstep, "memory_of", lambda device: 0)
    assert steps_of(together) == [*range(1, 17)]
    assert "2 SAEs start over: there is less memory than before" in caplog.text


# -- checkpoints that do not serve -------------------------------------------------------------


def interrupted(flags: str = "--training_tokens 512") -> list[LockstepRun]:
    together = arms({"one": flags, "two": f"{flags} --architecture topk --k 4"})
    with pytest.raises(Killed):
        train(together, kill_at(6), checkpoints=KEPT)
    return together


def starts_over(together: list[LockstepRun], caplog: pytest.LogCaptureFixture) -> str:
    """They start over, and what is said of it."""
    caplog.clear()
    assert steps_of(together) == [*range(1, 9)]
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert not checkpoints()
    return said


@pytest.mark.ci
def test_a_checkpoint_of_other_settings_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    one, two = interrupted()
    (other,) = arms({"one": "--training_tokens 512 --lr 1e-2"})
    said = starts_over([replace(other, folder=Path("other/one")), two], caplog)
    assert "2 SAEs start over: their checkpoint is not theirs any more (arms.one.settings" in said
    one = replace(one, folder=Path("fresh/one"))
    two = replace(two, folder=Path("fresh/two"))
    assert train([one, two]) == {}
    assert not same(Path("other/one"), one.folder)
    assert same(Path("lockstep/two"), two.folder)


@pytest.mark.ci
def test_a_checkpoint_of_other_code_is_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    together = interrupted()
    monkeypatch.setattr(lockstep_checkpoints, "of_code", lambda *_: {"files": {"runs/a.py": "x"}})
    assert "2 SAEs start over: their checkpoint" in starts_over(together, caplog)


@pytest.mark.ci
def test_a_damaged_checkpoint_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    together = interrupted()
    (path,) = checkpoints()
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    said = starts_over(together, caplog)
    assert "is damaged" in said
    assert "2 SAEs start over" in said


@pytest.mark.ci
def test_a_checkpoint_of_another_text_is_ignored_where_that_is_found_out(
    tiny_world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the text is read from elsewhere, and nobody can know all of it before."""
    interrupted()
    other = tiny_world.text("heldout")
    monkeypatch.setattr(world, "load_text", lambda split: other)
    flags = "--training_tokens 512"
    together = arms({"one": flags, "two": f"{flags} --architecture topk --k 4"})
    assert steps_of(together)[-8:] == [*range(1, 9)]
    assert "2 SAEs start over: the text is not the one" in caplog.text
    again = elsewhere(together, "again")
    assert train(again) == {}
    assert same(again[0].folder, together[0].folder)


@pytest.mark.ci
def test_an_arm_that_has_ended_and_whose_files_are_gone_starts_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    together = arms({"short": "--training_tokens 128", "long": "--training_tokens 512"})
    with pytest.raises(Killed):
        train(together, kill_at(6), checkpoints=KEPT)
    (together[0].unfinished / "sae_weights.safetensors").unlink()
    assert "the files in lockstep/short.unfinished are not what" in starts_over(together, caplog)


class Unsavable(AtStepThree):
    """Keeps what nobody can save."""

    name = "unsavable"

    def act(self, sae_in: Any) -> None:
        self.kept = object()


@pytest.mark.ci
def test_what_cannot_be_saved_is_told_and_trained(caplog: pytest.LogCaptureFixture) -> None:
    (one,) = arms({"one": "--training_tokens 512"})
    assert train([with_plugin(one, Unsavable)], checkpoints=KEPT) == {}
    assert "no checkpoint can be made of plugin 'unsavable': self.kept" in caplog.text
    assert [*KEPT.folder.iterdir()] == []


@pytest.mark.ci
def test_what_serves_nobody_any_more_is_removed() -> None:
    together = interrupted()
    (KEPT.folder / "mine.txt").write_text("a file of somebody's")
    with lock(checkpoints()[0].parent, PluginError("busy")):
        discard_others(KEPT.folder, [])
        assert [*KEPT.begun({"one"})] == [], "another process goes on from it"
    discard_others(KEPT.folder, ["two", "three"])
    assert len(checkpoints()) == 1
    discard_others(KEPT.folder, ["three"])
    assert [path.name for path in KEPT.folder.iterdir()] == ["mine.txt"]
    assert steps_of(together) == [*range(1, 9)]


# -- signals -----------------------------------------------------------------------------------


class Signalled(Exception):
    """What the handler of a signal raises."""


@pytest.fixture
def handled() -> Iterator[None]:
    def raises(*_: Any) -> None:
        raise Signalled

    before = {number: signal.signal(number, raises) for number in SIGNALS}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is raises
        signal.signal(number, handler)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def raising(number: int, times: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == 6:
            for _ in range(times):
                signal.raise_signal(number)

    return progress


@pytest.mark.ci
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_step_and_loses_nothing(
    number: int, handled: None, capfd: pytest.CaptureFixture[str]
) -> None:
    together = arms({"one": "--training_tokens 512"})
    with pytest.raises(Signalled):
        train(together, raising(number, 1), checkpoints=KEPT)
    assert "finishing the step and writing a checkpoint; again to stop" in capfd.readouterr().err
    assert steps_of(together) == [7, 8]


@pytest.mark.ci
def test_a_second_signal_stops_at_once(handled: None) -> None:
    together = arms({"one": "--training_tokens 512"})
    with pytest.raises(Signalled):
        train(together, raising(signal.SIGINT, 2), checkpoints=KEPT)
    assert steps_of(together) == [5, 6, 7, 8]


@pytest.mark.ci
def test_a_signal_that_ends_nothing_lets_them_go_on() -> None:
    together = arms({"one": "--training_tokens 512"})
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(len(checkpoints())))
    try:
        assert train(together, raising(signal.SIGUSR1, 1), checkpoints=KEPT) == {}
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]
