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
from lockstep_arms import ARMS, TOY, AtStepThree, Raises, arms, same, with_plugin

from sae_plugins.resume.files import files
from sae_plugins.resume.together import NAMES, Kept, discard_others
from sae_plugins.runs import lockstep, lockstep_checkpoints, memory
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
