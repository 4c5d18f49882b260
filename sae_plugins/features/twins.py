"""Each feature's twin in another SAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_plugins.features.firings import activation_twins
from sae_plugins.features.neighbours import decoder_twins

ALIKE = 0.5
"""The cosine of activations from which two features are twins."""


@dataclass(frozen=True)
class Twins:
    """Of each feature of one SAE, what is nearest to it in another.

    Attributes:
        index: the feature with the nearest activations; -1 where none fires where this one does.
        activation_cosine: of the activations of the two.
        decoder_cosine: of the decoder rows of the two.
        by_decoder: the feature with the nearest decoder row.
        by_decoder_cosine: of these decoder rows.
        share: how many of the features that fire have a twin, from 0 to 1.
        median: of the activation cosines of those that have one; 0 if none has.
    """

    index: NDArray[np.int64]
    activation_cosine: NDArray[np.float64]
    decoder_cosine: NDArray[np.float64]
    by_decoder: NDArray[np.int64]
    by_decoder_cosine: NDArray[np.float64]
    share: float
    median: float


def twins_of(acts: Sequence[Any], rows: Sequence[Tensor], sae: int) -> Twins:
    """The twins of one of two SAEs' features.

    Args:
        acts: activations [tokens, d_sae] of both, at the same tokens.
        rows: `directions` of both.
        sae: 0 or 1.
    """
    other = 1 - sae
    index, cosine = activation_twins(acts[sae], acts[other])
    chosen = torch.from_numpy(np.maximum(index, 0)).to(rows[other].device)
    cosines = (rows[sae] * rows[other][chosen]).sum(dim=1).cpu().double().numpy()
    best, best_cosine = decoder_twins(rows[sae], rows[other])
    fires = acts[sae].getnnz(axis=0) > 0
    alike = cosine[fires & (cosine >= ALIKE)]
    return Twins(
        index,
        cosine,
        np.where(index >= 0, cosines, 0),
        best.cpu().numpy(),
        best_cosine.cpu().double().numpy(),
        float(len(alike) / fires.sum()) if fires.any() else 0.0,
        float(np.median(alike)) if len(alike) else 0.0,
    )
