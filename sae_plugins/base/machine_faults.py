"""Which errors are faults of the machine: elsewhere, what has them here goes well.

Memory of a GPU that is too small is none: what runs there takes it, and takes it elsewhere, too.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from sae_plugins.base.errors import SaePluginsError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM)
"""Of the disk and of the machine's memory."""
_WORDS = re.compile(
    r"(CUDA|HIP|cuDNN) error|CUDA driver error|NCCL|No space left on device|Disk quota exceeded"
    r"|Cannot allocate memory",
    re.IGNORECASE,
)
"""What libraries say in errors of their own."""
_WANTED = re.compile(r"tried to allocate (\d+) bytes")


def is_of_machine(error: BaseException) -> bool:
    """Whether an error, or what has led to it, is a fault of the machine."""
    import torch

    errors = [*_with_causes(error)]
    if any(isinstance(each, torch.OutOfMemoryError) for each in errors):
        return False
    return any(map(_is_of_machine, errors))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_machine(error: BaseException) -> bool:
    if isinstance(error, SaePluginsError):  # which may be about such words
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NUMBERS
    wanted = _WANTED.search(str(error))
    if wanted and int(wanted[1]) > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return False  # more than there is in all
    return isinstance(error, MemoryError) or bool(_WORDS.search(str(error)))
