"""The page on several ranks: its scripts for Slurm run without Slurm, and what it says is so."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from snippets import DOCS, block, check_line

from sae_plugins.base import ranks
from sae_plugins.base.errors import Paused
from sae_plugins.framework.forked import Crashed, on_ranks, outcomes
from sae_plugins.resume.division import SHARDS, shards_for

PAGE = DOCS / "ranks.md"
SCRIPTS = sorted((DOCS / "slurm").glob("*.sh"))
PAUSED, HERE = Paused.exit_code, str(Path(sys.executable).parent)


def name(script: Path) -> str:
    return script.stem


def lines(script: Path) -> Iterator[list[str]]:
    """The lines that start ranks, as words."""
    for line in script.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith(("srun ", "torchrun ")):
            yield shlex.split(line)


def options(script: Path) -> dict[str, str]:
    """What the script asks of Slurm."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", script.read_text("utf-8"), re.M)
    return dict(found)


# -- the scripts as they are -----------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_starts_ranks_that_divide_its_shards_with_flags_that_exist(script: Path) -> None:
    (words,) = lines(script)
    launcher, flags = words[: words.index("sae-plugins")], words[words.index("sae-plugins") + 1 :]
    check_line(flags)
    asked = options(script)
    per_node = int(asked["gpus-per-node"])
    if launcher[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        known = get_args_parser().parse_args([*launcher[1:], "sae-plugins"])
        assert known.no_python
        assert known.nproc_per_node == str(per_node)
    else:
        assert launcher == ["srun"]
        assert asked["ntasks-per-node"] == str(per_node)
    size = per_node * int(asked["nodes"])
    shards = int(flags[flags.index("--data_shards") + 1]) if "--data_shards" in flags else SHARDS
    assert shards % size == 0
    assert "--go_on" in flags
    assert ("--max_time" in flags) != ("signal" in asked)
    assert f"slurm/{script.name}" in str(script)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_all_scripts_are_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    assert SCRIPTS
    for script in SCRIPTS:
        assert f"```sh\n{script.read_text('utf-8')}```" in text


# -- what the page says ----------------------------------------------------------------------------


def test_its_numbers_and_messages_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text("utf-8").split())
    assert f"exit with code **{PAUSED}**" in text
    assert f"missed after {ranks.LIMIT:g} s; `--rank_timeout`" in text
    assert f"Under torchrun V is {SHARDS} unless you say otherwise" in text
    assert [shards_for(size) for size in (1, 2, 3, 4, 6, 8)] == [1, 8, 3, 8, 6, 8]


@pytest.mark.ci
def test_a_rank_that_dies_is_named_as_the_page_says() -> None:
    def act() -> str:
        met = ranks.join()
        if met.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(ranks.RankError) as raised:
            met.agree(True)
        return str(raised.value)

    said, killed = outcomes(2, act)
    assert isinstance(killed, Crashed)
    assert f"sae-plugins train: error: {said}\n" in PAGE.read_text("utf-8")


def test_its_script_in_python_runs_on_two_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 alone leaves an SAE, and it is that of one process."""
    import sae_lens.synthetic  # noqa: F401 - once, before the ranks are forked

    import sae_plugins.framework.trainer  # noqa: F401

    text = block("python", "SyntheticSAERunner", PAGE)
    weights = {}
    for count in (2, 1):
        here = tmp_path / str(count)
        here.mkdir()
        monkeypatch.chdir(here)

        def act() -> list[bool]:
            found: dict[str, Any] = {"__name__": "docs"}
            exec(compile(text, PAGE, "exec"), found)
            return [found["writes"], ranks.ranks().size == found["join"]().size]

        assert on_ranks(count, act) == [[rank == 0, True] for rank in range(count)]
        weights[count] = (here / "runs/script/sae_weights.safetensors").read_bytes()
    assert weights[1] == weights[2]


# -- the scripts, run ------------------------------------------------------------------------------

SMALL = [
    *("--model_name", "synthetic:toy", "--training_tokens", "32000", "--d_sae", "32"),
    *("--train_batch_size_tokens", "32", "--eval_samples", "64", "--heldout_tokens", "64"),
    *("--device", "cpu", "--recorder.every", "1", "--checkpoint_every", "50"),
]
SRUN = """#!/usr/bin/env python
import os, signal, subprocess, sys
ranks = [
    subprocess.Popen(sys.argv[1:], env={**os.environ, "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"})
    for rank in range(2)
]
signal.signal(signal.SIGUSR1, lambda *_: [each.send_signal(signal.SIGUSR1) for each in ranks])
print("started", file=open("started", "w"))
sys.exit(max(each.wait() for each in ranks))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" > requeued; else echo 127.0.0.1; fi
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two CPUs in place of the GPUs, and commands that do what Slurm's would."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for command, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = commands / command
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{commands}:{HERE}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "here")
    monkeypatch.setenv("MASTER_PORT", "29517")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_this_machine(script: Path, *flags: str) -> Path:
    """The script with two ranks, and a small run."""
    text = script.read_text("utf-8").replace("--nproc_per_node 8", "--nproc_per_node 2")
    text, count = re.subn(r"--recipe hybrid-order", shlex.join([*SMALL, *flags]), text)
    assert count == 1
    file = Path(script.name)
    file.write_text(text)
    return file


def rows() -> int:
    file = Path("runs/gemma/unfinished/metrics.jsonl")
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_trains_on_two_ranks(script: Path, cluster: Path) -> None:
    file = on_this_machine(script, "--training_tokens", "3200")
    done = subprocess.run(["bash", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shards = 16 if "several" in script.name else 8
    assert f"data shards {shards}, read by 2 ranks" in done.stdout
    assert Path("runs/gemma/sae_weights.safetensors").exists()
    assert not Path("requeued").exists()


@pytest.mark.slow
def test_a_job_that_is_told_to_pause_queues_up_again_and_goes_on(cluster: Path) -> None:
    (script,) = [each for each in SCRIPTS if each.stem == "requeue"]
    file = on_this_machine(script)
    with subprocess.Popen(["bash", file], stdout=subprocess.PIPE, text=True) as job:
        while rows() < 5 and job.poll() is None:
            time.sleep(0.05)
        (srun,) = subprocess.run(
            ["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(srun), signal.SIGUSR1)
        said, _ = job.communicate()
    assert job.returncode == PAUSED
    assert "go on with it: sae-plugins train --resume runs/gemma" in said
    assert Path("requeued").read_text() == "17\n"
    again = subprocess.run(
        ["bash", file],
        env={**os.environ, "SLURM_RESTART_COUNT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert re.search(r"^resumed +after step \d+$", again.stdout, re.M)
    assert Path("runs/gemma/sae_weights.safetensors").exists()
