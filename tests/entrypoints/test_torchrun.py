"""Ranks that torchrun starts, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faults import contents
from safetensors.torch import load_file

from sae_plugins.entrypoints.main import main

REAL = [
    *("--training_tokens", "32k", "--train_batch_size_tokens", "512", "--d_sae", "64"),
    *("--n_batches_in_buffer", "8", "--n_batches_for_norm_estimate", "2", "--heldout_tokens", "1k"),
    *("--recorder.every", "1", "--recorder.figures", "false", "--checkpoint_every", "10"),
    *("--data_shards", "2", "--output_path"),
]
"""62 steps on the embedded world."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds a rank by Linux' list of processes")
def test_torchrun_starts_ranks_again_one_of_which_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(sys.executable).parent
    torchrun = [
        *(str(folder / "torchrun"), "--nproc_per_node", "2", "--max-restarts", "1"),
        *("--no_python", str(folder / "sae-plugins"), "train", *REAL, "run"),
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        torchrun, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    checkpoint = Path("run", "unfinished", "resume", "step-000000010.safetensors")
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("data shards 2, read by 2 ranks") == 2  # the second time from a checkpoint
    assert main(["train", *REAL, "alone"]) == 0
    one, other = (load_file(f"{run}/sae_weights.safetensors") for run in ("run", "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert contents(Path("run"))["metrics.jsonl"] == contents(Path("alone"))["metrics.jsonl"]


def rank_of(parent: int, rank: int) -> int:
    """The process of a rank, by its parent and its environment."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], check=True, capture_output=True, text=True
    )
    for process in map(int, children.stdout.split()):
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return process
    raise AssertionError(f"no rank {rank} among {children.stdout.split()}")
