"""As which of several ranks this process was started; no slow imports."""

from __future__ import annotations

import os


def started() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun or srun says; no slow imports."""
    found = os.environ
    if "WORLD_SIZE" in found:
        return int(found.get("RANK", "0")), int(found["WORLD_SIZE"])
    # a batch script has the number of tasks as well, and is none of them
    if {"MASTER_ADDR", "SLURM_NTASKS", "SLURM_STEP_ID"} <= {*found}:
        return int(found.get("SLURM_PROCID", "0")), int(found["SLURM_NTASKS"])
    return 0, 1


def restarts() -> int:
    """How often torchrun has started the ranks again after one died, or Slurm a job's script."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return sum(int(os.environ.get(name) or 0) for name in names)
