"""The mean of the activations, which is the same at every token, and which b_dec may hold.

What b_dec does not hold of it, features must: SAELens starts b_dec at 0, and Adam moves each of its
elements by no more than the learning rate a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

OUTLIER = 5.0
"""Times the median norm, beyond which a token is left out of the mean, as BOS in many models."""


@torch.no_grad()
def usual_tokens(sae: Any, sae_in: Tensor) -> Tensor:
    """The tokens of a batch as b_dec is added to them, without outliers.

    Args:
        sae: SAELens', in training.
        sae_in: [B, ...], the batch as its forward pass gets it.

    Returns:
        [n, d_in] in float32: those that are at most `OUTLIER` times as long as the median.
    """
    rows: Tensor = sae.process_sae_in(sae_in) + sae.b_dec * sae.cfg.apply_b_dec_to_input
    rows = rows.flatten(0, -2).float()
    norms = torch.linalg.vector_norm(rows, dim=1)
    return rows[norms <= OUTLIER * norms.median()]


def share_of_energy(rows: Tensor) -> float:
    """What part of the mean squared norm of rows [n, d_in] their mean has; 0 of zeros."""
    energy = rows.square().sum(dim=1).mean()
    return float(rows.mean(dim=0).square().sum() / energy) if energy else 0.0


@torch.no_grad()
def distance(b_dec: Tensor, mean: Tensor) -> float | None:
    """||b_dec - mean|| / ||mean||, both [d_in]; None where the mean is 0."""
    length = torch.linalg.vector_norm(mean)
    if not length:
        return None
    return float(torch.linalg.vector_norm(b_dec.float() - mean) / length)
