"""Whether all ranks have the same SAE: each takes every step, and none may drift."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_plugins.base.fingerprints import of_value
from sae_plugins.base.ranks import Ranks
from sae_plugins.resume.resumable import Resumable
from sae_plugins.resume.state import tensors_of

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element, whose bits are taken as a number."""
_LONG = 60
"""Letters of a value from which on its hash stands for it."""


def check_replicas(trainers: Sequence[Resumable], ranks: Ranks) -> None:
    """Refuse to go on where the SAEs, optimizers, counters or plugins of ranks differ.

    Raises:
        RankError: names the values, and the first rank that differs.
    """
    sums: dict[str, Any] = {}
    for number, trainer in enumerate(trainers, start=1):
        which, tree = f"SAE {number}, " if len(trainers) > 1 else "", trainer.replicated()
        for name, tensor in tensors_of(tree).items():
            sums[which + name.replace("/", ".")] = checksum(tensor)
        sums |= {which + name: text for name, text in _plain(tree, "")}
    ranks.same(
        f"after step {trainers[0].n_training_steps}, what is trained (a plugin may draw from "
        "something that is not seeded, or ask for its rank)",
        sums,
    )


def _plain(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The values of a tree that are no tensors, each as a short text, by their place."""
    if isinstance(value, (Tensor, torch.Generator, np.ndarray, np.generic)):
        return
    if hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _plain(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple, deque)) and not all(map(_is_leaf, value)):
        for place, each in enumerate(value):
            yield from _plain(each, f"{name}.{place}")
    else:  # as a text, in which a NaN equals another
        yield name, told if len(told := repr(value)) < _LONG else of_value(told)


def _is_leaf(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """A number of a tensor's bits and of where they are; no rounding, and one sync."""
    if not tensor.numel():
        return 0
    bits = tensor.detach().contiguous().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    if bits.is_complex():
        bits = torch.view_as_real(bits).flatten(1)
    numbers = bits.view(_INTEGERS[bits.element_size()])
    if numbers.element_size() < 4:
        numbers = numbers.int()
    of_rows, of_columns = (_weights(count, bits.device) for count in bits.shape)
    sums = (numbers * of_columns.to(numbers.dtype)).sum(1, dtype=torch.int64)
    return int((sums * of_rows).sum())


def _weights(count: int, device: torch.device) -> Tensor:
    """Numbers that are odd, so that no bit is lost where a product is too long, and on no line."""
    place = torch.arange(1, count + 1, device=device)
    return (place * place * 2_654_435_761 + place) % (2**31 - 1) | 1
