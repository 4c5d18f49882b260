"""Which errors are faults of the machine, and which are those of what runs there."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from sae_plugins.base.errors import PluginError
from sae_plugins.base.machine_faults import is_of_machine

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate {} bytes. Error code 12 (Cannot allocate memory)"
)
"""torch's words."""
THERE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("error", "of_machine"),
    [
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublas`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (Exception("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError(ALLOCATOR.format(THERE // 2)), True),
        (RuntimeError(ALLOCATOR.format(THERE * 2)), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (ValueError("Loss is NaN"), False),
        (PluginError("--rank_timeout is for NCCL"), False),
    ],
)
def test_kinds(error: Exception, of_machine: bool) -> None:
    assert is_of_machine(error) is of_machine
    wrapped = PluginError("plugin 'reorder' failed")
    wrapped.__cause__ = error
    assert is_of_machine(wrapped) is of_machine


def test_memory_of_a_gpu_that_is_too_small_is_the_cause_of_what_follows() -> None:
    error = RuntimeError("CUDA error: out of memory")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert not is_of_machine(error)
