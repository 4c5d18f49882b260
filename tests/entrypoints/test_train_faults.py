"""A run that is killed or interrupted at any change of its files ends as if it had not been."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import contents, forked

from sae_plugins.entrypoints.main import main

LANGUAGE_MODEL = [
    *("--training_tokens", "320", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "256"),
    *("--plugin", "activation-threshold", "--recorder.every", "1"),
]
"""5 steps, with a plugin that edits what is saved."""
SYNTHETIC = [
    *("--model_name", "synthetic:toy", "--training_tokens", "480", "--d_sae", "64"),
    *("--train_batch_size_tokens", "96", "--eval_samples", "500", "--heldout_tokens", "500"),
    *("--n_batches_for_norm_estimate", "2", "--save_synthetic_model", "true"),
]
QUICK = ["--recorder.figures", "false"]
RUNS = {
    "n_checkpoints": [*LANGUAGE_MODEL, "--checkpoint_every", "2", "--n_checkpoints", "3"],
    "none": [*LANGUAGE_MODEL, *QUICK, "--checkpoint_every", "2"],
    "last": [*LANGUAGE_MODEL, *QUICK, "--checkpoint_every", "0", "--n_checkpoints", "3"],
    "synthetic": [*SYNTHETIC, *QUICK, "--checkpoint_every", "2", "--n_checkpoints", "3"],
}
"""With SAELens' own checkpoints; without; with nothing else to go on from; and other data."""
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
RUN, WHOLE = Path("run"), Path("whole")
RESUME = ["--resume", str(RUN)]


@pytest.fixture(autouse=True)
def _folder(tiny_world: Any, sketched: None) -> None:
    """An empty working directory, and a tiny model for the embedded world."""


def train(arguments: list[str], **fault: Any) -> int:
    return forked(partial(main, ["train", *arguments]), **fault)


def go_on(command: list[str], first: list[str]) -> None:
    """Do as a user does who begins with `first`, and follows the advice."""
    tried = []
    words = first
    while len(tried) < 4:
        code = train(words)
        tried.append((words, code, faults.said()))
        if code == 0 or "is finished: there is nothing to go on with" in faults.said():
            return
        assert code == 2, tried
        if "train --resume run" in faults.said():
            words = RESUME
        elif "--overwrite" in faults.said():
            words = [*command, "--overwrite"]
        else:
            words = command if words == RESUME else RESUME
    raise AssertionError(tried)


def check(kind: str, number: signal.Signals, first: int = 1, every: int = 1) -> int:
    """Send a signal at events, go on, and compare; the number of events that there are.

    Every other time with the same command, or with `--resume`.

    Args:
        kind: of run.
        number: the signal.
        first: the first event; those of the end are negative.
        every: and each so many after it.
    """
    command = [*RUNS[kind], "--output_path", str(RUN)]
    assert main(["train", *RUNS[kind], "--output_path", "warm"]) == 0  # what is imported late
    assert train(command) == 0, faults.said()
    events = faults.events()
    wanted = contents(RUN.rename(WHOLE))
    for at in range(first if first > 0 else len(events) + 1 + first, len(events) + 1, every):
        code = train(command, at=at, number=number)
        assert code in (0, 130, -number), faults.said()
        if code:
            go_on(command, first=command if at % 2 else RESUME)
        found = contents(RUN)
        differ = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        assert found == wanted, (kind, number, at, events[at - 1], differ)
        shutil.rmtree(RUN)
    return len(events)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("kind", RUNS)
def test_every_event(kind: str, number: signal.Signals, record_property: Any) -> None:
    record_property("events", check(kind, number))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_some_events_of_the_end(number: signal.Signals) -> None:
    check("n_checkpoints", number, first=-66, every=5)
