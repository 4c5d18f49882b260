"""What differs between two states of a training, to the bit or by how much."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def differences(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float = 0.0
) -> dict[str, float]:
    """What differs, by name: the largest difference over the tensor's largest value.

    NaN equals nothing. `tolerance=0` means bitwise equality, up to the sign of zero.
    """
    found = {name: float("inf") for name in one.keys() ^ other.keys()}
    for name in one.keys() & other.keys():
        a, b = one[name].detach().double(), other[name].detach().double()
        if not torch.equal(a, b):
            found[name] = float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))
    return {name: size for name, size in found.items() if not size <= tolerance}


def equal_values(one: Any, other: Any) -> bool:
    """Whether two values of a state are bitwise the same, tensors and arrays included."""
    if isinstance(one, torch.Generator) and isinstance(other, torch.Generator):
        return torch.equal(one.get_state(), other.get_state())
    if hasattr(one, "state_dict"):
        return equal_values(one.state_dict(), other.state_dict())
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal_values(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(equal_values, one, other))
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)
