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
