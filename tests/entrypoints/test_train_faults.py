"""A run that is killed or interrupted at any change of its files ends as if it had not been."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import faults
from faults import contents, forked
from sae_plugins.entrypoints.main import main

LANGUAGE_MODEL = [
    *("--training_tokens", "320", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "256"),
    *("--plugin", "activation-threshold", "--recorder.every", "1"),
]
"""5 steps, with a plugin that edits what is saved."""
RUNS = {
    "n_checkpoints": [*LANGUAGE_MODEL, "--checkpoint_every", "2", "--n_checkpoints", "3"],
    "none": [*LANGUAGE_MODEL, "--checkpoint_every", "2"],
    "never": [*LANGUAGE_MODEL, "--checkpoint_every", "0", "--n_checkpoints", "3"],
}
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
RUN, WHOLE = Path("run"), Path("whole")
RESUME = ["--resume", str(RUN)]


@pytest.fixture(autouse=True)
def _folder(tiny_world: Any, sketched: None) -> None:
    """An empty working directory, and a tiny model for the embedded world."""


def train(arguments: list[str], **fault: Any) -> int:
    return forked(partial(main, ["train", *arguments]), **fault)


def go_on(command: list[str], first: list[str]) -> None:
    """Do as the user who begins with `first` is advised to do, until the run has ended."""
    tried = []
    for _ in range(4):
        code = train(first)
        tried.append((first, faults.said()))
        if code == 0 or "is finished: there is nothing to go on with" in faults.said():
            return
        assert code == 2, tried
        if "--overwrite" in faults.said() and first != RESUME and "resume run" not in faults.said():
            first = [*command, "--overwrite"]
        else:
            first = command if first == RESUME else RESUME
    raise AssertionError(tried)


def check(kind: str, number: signal.Signals, every: int = 1, last: int | None = None) -> int:
    """Send a signal at events; the number of events that there are.

    Args:
        kind: of run.
        number: the signal.
        every: of so many events one is chosen,
        last: of so many at the end.
    """
    command = [*RUNS[kind], "--output_path", str(RUN)]
    assert (
        main(["train", *RUNS[kind], "--output_path", "warm"]) == 0
    )  # imports what is imported late
    assert train(command) == 0, faults.said()
    total, what = len(faults.events()), faults.events()
    RUN.rename(WHOLE)
    wanted = contents(WHOLE)
    wrong = []
    for at in range(
        1 if last is None else total - last + 1, total + 1, int(os.environ.get("EVERY", every))
    ):
        for first in (command, RESUME):
            code = train(command, at=at, number=number)
            try:
                assert code != 1, faults.said()
                if code or not RUN.exists():
                    go_on(command, first)
                found = contents(RUN)
                assert found.keys() == wanted.keys(), set(found) ^ set(wanted)
                assert found == wanted, [n for n in found if found[n] != wanted[n]]
            except Exception as e:
                wrong.append((at, what[at - 1], first[0], str(e)[:600]))
            with open(os.environ.get("PROGRESS", os.devnull), "a") as f:
                print(
                    kind,
                    number.name,
                    at,
                    total,
                    what[at - 1],
                    first[0],
                    "WRONG " + wrong[-1][-1][:300].replace(chr(10), " ")
                    if wrong and wrong[-1][0] == at and wrong[-1][2] == first[0]
                    else "ok",
                    file=f,
                )
            shutil.rmtree(RUN, ignore_errors=True)
    for each in wrong:
        print(*each)
    print(kind, number, "events", total, "wrong", len(wrong))
    for each in what if os.environ.get("SHOW") else ():
        print("   ", each)
    assert not wrong
    return total


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("kind", RUNS)
def test_every_event(kind: str, number: signal.Signals) -> None:
    check(kind, number)
