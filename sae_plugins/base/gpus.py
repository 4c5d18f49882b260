"""The GPUs of this machine, and one of them alone for a process."""

from __future__ import annotations

import os

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()  # which does not begin CUDA
    named = os.environ.get(_VISIBLE)
    return (named.split(",") if named else [*map(str, range(count))])[:count]


def see_only(gpu: str) -> None:
    """Have this process, in which CUDA has not begun, see one GPU: `cuda` in all of its threads."""
    os.environ[_VISIBLE] = gpu


def identity() -> str | None:
    """What tells the GPU that this process sees alone from all others; None without one.

    CUDA_VISIBLE_DEVICES does not: where Slurm gives each process its own, all of them call it 0.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    found = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return None if found is None else str(found)
