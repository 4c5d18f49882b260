"""The page on clusters: what it has people type runs on one machine, Slurm's part without Slurm."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import toys
import yaml
from snippets import DOCS, block, commands

from sae_plugins.base import alive
from sae_plugins.study import driver, tasks, told

PAGE = DOCS / "cluster.md"
BIN = Path(sys.executable).parent
STUDY = {
    "reference": "l1",
    "models": {
        "toy": {
            "train": toys.TRAIN,
            "suites": toys.SUITES,
        }
    },
    "arms": {
        "l1": {"kind": "baseline", "train": {"l1_coefficient": 1}},
        "topk": {"train": {"architecture": "topk", "k": 8}},
    },
    "seeds": [0, 1],
}
SBATCH = """#!/bin/bash
# What Slurm does with a job, on this machine: it runs the script, which calls srun.
number=$(( $(cat FOLDER/number 2>/dev/null || echo 0) + 1 ))
echo $number > FOLDER/number
cp "$1" FOLDER/script-$number
export SLURM_JOB_ID=$number SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NNODES=1 \\
    SLURM_NODEID=0
nohup bash FOLDER/script-$number > FOLDER/log-$number 2>&1 &
echo Submitted batch job $number
"""
SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do
    case $1 in --output|--error) shift ;; esac
    shift
done
exec "$@"
"""
SACCT = """#!/bin/bash
echo 'JobID|State|NodeList'
for script in FOLDER/script-*; do echo "${script##*-}|RUNNING|here"; done
"""


def test_its_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text("utf-8").split())
    assert f"every {alive.BEAT:g} seconds".replace("10", "ten") in text
    assert alive.DEAD_AFTER == 60
    assert "told nothing for a minute counts as dead" in text
    assert told._KEPT == 100
    assert "but for the last hundred that tell" in text
    assert driver._DEATHS == 3
    assert "one that dies three times at the same place ends the study" in text
    assert tasks._SHARED_IN_TRAINING == {True: 0.6, False: 8.0}
    assert "a language model counts as much as eight SAEs, a synthetic one as 0.6" in text


def line(holding: str) -> list[str]:
    """The one command of the page that holds these words."""
    (only,) = [words for words in commands(PAGE.read_text("utf-8")) if holding in " ".join(words)]
    return only


def run(words: list[str], **variables: str) -> str:
    path = f"{variables.pop('first', BIN)}:{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **variables},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def check_done() -> None:
    assert len([*Path("studies/mine/saes").glob("*/*/sae_weights.safetensors")]) == 4
    assert Path("studies/mine/report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("holding", ["--slurm.partition gpu", "--slurm.cluster local"])
def test_slurm(holding: str, here: Path) -> None:
    programs = here / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (programs / name).write_text(
            text.replace("FOLDER", str(here)).replace("{{", "{").replace("}}", "}")
        )
        (programs / name).chmod(0o755)
    words = [*line(holding), "--underpowered"]
    run(words, first=str(programs))
    check_done()
    if "partition" in holding:
        assert "#SBATCH --partition=gpu" in (here / "script-1").read_text()
    assert "at work" not in run(line("study status"))


@pytest.mark.slow
def test_ray(here: Path) -> None:
    start = shlex.split("ray start --head")
    assert " ".join(start) in PAGE.read_text("utf-8")
    run([*start, "--num-cpus", "2", "--include-dashboard", "false"])
    try:
        run([*line("--on ray --jobs 8"), "--underpowered"])
        check_done()
    finally:
        run(["ray", "stop", "--force"])


@pytest.mark.slow
def test_an_executor_of_one_s_own(here: Path) -> None:
    (here / "ours").mkdir()
    (here / "ours/ours.py").write_text(block("python", "def dask", PAGE))
    run([*line("--on ours:dask"), "--underpowered"], PYTHONPATH=str(here / "ours"))
    check_done()
