"""All pairs or some: which is faster depends on how many features fire, and is part of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sae_plugins.base.patches import replaced
from sae_plugins.framework.fast.pairs import Dense, Pairs, Sparse
from sae_plugins.framework.plugin import Stateful

SPARSE_BELOW = {
    ("cpu", "float32"): 0.1,
    ("cpu", "bfloat16"): 0.05,
    # not measured: from the rates of an H200's products and memory
    ("cuda", "float32"): 0.04,
    ("cuda", "tf32"): 0.012,
    ("cuda", "bfloat16"): 0.0035,
}
"""The share of pairs that fire below which a list of them is faster, by device and products."""
LOOK_EVERY = 20
"""Steps between two looks at how many fire, which is a pass over all pairs."""


class Choice(Stateful):
    """The choice between all pairs and those that fire.

    Attributes:
        sparse: whether the next step lists the pairs that fire.
        look_at: the first step that counts them, while no step lists them.
    """

    def __init__(self) -> None:
        """Begin with all pairs, and look at once."""
        self.sparse, self.look_at = False, 0

    def pairs(self, pre: Tensor, step: int, fires: Callable[[], Tensor], masked: bool) -> Pairs:
        """The pairs for one step, of which a later one's choice depends on how many fire.

        Args:
            pre: what the features fire by, [B, n].
            step: number of the step.
            fires: gives where they do, a mask [B, n].
            masked: whether values at other pairs are not 0 by themselves.
        """
        if not self.sparse and step < self.look_at:
            return Dense(fires() if masked else None)
        mask, most = fires(), sparse_below(pre.device) * pre.numel()
        if not self.sparse:
            self.look_at = step + LOOK_EVERY
            self.sparse = bool(mask.count_nonzero() < most)
            if not self.sparse:
                return Dense(mask if masked else None)
        flat = mask.flatten().nonzero().squeeze(1)
        if len(flat) >= most:  # a list of far too many takes more memory than all pairs
            self.sparse, self.look_at = False, step + LOOK_EVERY
            return Dense(mask if masked else None)
        return Sparse.of_flat(flat, pre.shape)

    def largest(self, pre: Tensor, share: float) -> bool:
        """Whether to list the pairs of a step where this share of all fires, whatever comes."""
        self.sparse = share < sparse_below(pre.device)
        return self.sparse


def sparse_below(device: torch.device) -> float:
    """`SPARSE_BELOW` for products on this device, as they are made here and now."""
    if torch.is_autocast_enabled(device.type):
        products = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
    else:
        is_fast = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        products = "tf32" if is_fast else "float32"
    return SPARSE_BELOW.get((device.type, products), 0.0)


def forced(sparse: bool) -> AbstractContextManager[None]:
    """List the pairs that fire in every step, or in none, while this is open: for tests."""
    share = float("inf") if sparse else 0.0
    return replaced(sys.modules[__name__], sparse_below=lambda device: share)
