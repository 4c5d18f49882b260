"""`sae-plugins train --profile`: where the time of a run went, which is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.entrypoints.main import main
from sae_plugins.runs.recorder import Recorder

RUN = [
    *("--training_tokens", "640", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16", "--d_sae", "32"),
    *("--heldout_tokens", "256", "--plugin", "reorder", "--reorder.start", "3"),
    *("--reorder.interval", "3", "--checkpoint_every", "4"),
]
"""10 steps."""


@pytest.fixture(autouse=True)
def folder(tiny_world: Any, sketched: None) -> None:
    """An empty working directory, and a tiny model for the embedded world."""


def train(output: str, *arguments: str) -> dict[str, Any]:
    assert main(["train", *RUN, "--output_path", output, *arguments]) == 0
    return json.loads(Path(output, "summary.json").read_text())


def test_a_profiled_run_says_where_the_time_went(capsys: pytest.CaptureFixture[str]):
    measured = train("run", "--profile")["profile"]
    said = capsys.readouterr().out
    calls = {(row["part"], row["detail"]): row["calls"] for row in measured["parts"]}
    assert calls["SAE step", "backward"] == calls["reorder", "step_ended"] == 10
    assert calls["batches", "language model"] == calls["batches", "text"] > 0
    assert calls["batches", "mixing buffer"] >= 10
    assert calls["checkpoints", "to go on from"] == 2
    assert [calls[name, ""] for name in ("loading", "held-out scoring", "figures")] == [1, 1, 1]
    seconds = sum(row["seconds"] for row in measured["parts"])
    assert seconds == pytest.approx(measured["seconds"], abs=1e-6)
    for text in ("where the time went", "backward", "step_ended", "held-out scoring", "the whole"):
        assert text in said
    assert "peak memory" not in said  # which only CUDA tells
    assert measured["held_bytes"]["recorder"] >= 32 * 4
    assert "profile" not in Path("run/run.yaml").read_text()


@pytest.mark.ci
def test_a_profiled_run_is_the_same_run(capsys: pytest.CaptureFixture[str]):
    plain = train("plain")
    assert "where the time went" not in capsys.readouterr().out
    found = train("profiled", "--profile")
    assert "profile" not in plain
    timed = {"run/seconds", "training/seconds", "training/tokens_per_second", "profile"}
    assert {n: plain[n] for n in plain if n not in timed} == {
        n: found[n] for n in found if n not in timed
    }
    weights = [Path(name, "sae_weights.safetensors") for name in ("plain", "profiled")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.ci
def test_a_resumed_run_is_profiled_from_there(monkeypatch: pytest.MonkeyPatch):
    own = Recorder.count

    def killed(self: Recorder, run: Any, tokens: int) -> None:
        if run.step == 6:
            raise RuntimeError("killed")
        own(self, run, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "count", killed)
        assert main(["train", *RUN, "--output_path", "run", "--profile"]) == 1
    assert main(["train", "--resume", "run", "--profile"]) == 0
    measured = json.loads(Path("run/summary.json").read_text())["profile"]
    calls = {(row["part"], row["detail"]): row["calls"] for row in measured["parts"]}
    assert calls["SAE step", "forward"] == 6  # after the checkpoint of step 4
