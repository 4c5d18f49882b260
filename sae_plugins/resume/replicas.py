"""Whether all ranks have the same SAE: each takes every step, and none may drift."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_plugins.base.ranks import Ranks
from sae_plugins.resume.resumable import Resumable
from sae_plugins.resume.state import tensors_of

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element, whose bits are taken as a number."""


def check_replicas(trainers: Sequence[Resumable], ranks: Ranks) -> None:
    """Refuse to go on where the SAEs, optimizers, counters or plugins of ranks differ.

    Raises:
        RankError: names the tensors, and the first rank that differs.
    """
    sums = {
        f"{f'SAE {number}, ' if len(trainers) > 1 else ''}{name.replace('/', '.')}": checksum(
            tensor
        )
        for number, trainer in enumerate(trainers, start=1)
        for name, tensor in tensors_of(trainer.replicated()).items()
    }
    ranks.same(
        f"after step {trainers[0].n_training_steps}, what is trained (a plugin may draw from "
        "something that is not seeded, or ask for its rank)",
        sums,
    )


@torch.no_grad()
def checksum(tensor: Tensor) -> list[int]:
    """Two sums of a tensor's bits, weighted by row and by column: exact, and told in one sync."""
    if not tensor.numel():
        return [0, 0]
    bits = tensor.detach().contiguous().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    if bits.is_complex():
        bits = torch.view_as_real(bits).flatten(1)
    numbers = bits.view(_INTEGERS[bits.element_size()])
    sums = [numbers.sum(axis, dtype=torch.int64) for axis in (0, 1)]
    weighted = [(one * torch.arange(1, len(one) + 1, device=one.device)).sum() for one in sums]
    first, second = torch.stack(weighted).tolist()
    return [first, second]
