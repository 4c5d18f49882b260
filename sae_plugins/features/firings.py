"""Which features fire where, as sparse matrices on bounded memory, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

MOST = 16_000_000
"""Firings that are remembered, of all SAEs together; each takes 8 bytes."""
_BLOCK = 1 << 22
"""Numbers of a block of a matrix [d_sae, d_sae]."""
_LEAST = 2
"""Firings that two features must share to be called partners."""

Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Of one context: firings per token, and each one's feature and activation."""


class Firings:
    """Remembers the firings of some SAEs at the tokens of every context.

    When they become too many, every second context is forgotten, and of the rest of the text only
    as many are remembered: `every` says how many contexts stand for one.
    """

    def __init__(self, d_saes: Sequence[int], most: int = MOST) -> None:
        """Remember nothing yet."""
        self.every = 1
        self._d_saes = d_saes
        self._most = most
        self._contexts: dict[int, list[Rows]] = {}
        self._count = 0

    def add(self, context: int, rows: list[Rows]) -> None:
        """Remember the next context, by number: for each SAE its firings."""
        if context % self.every:
            return
        self._contexts[context] = rows
        self._count += _size(rows)
        while self._count > self._most and len(self._contexts) > 1:
            self.every *= 2
            for number in [n for n in self._contexts if n % self.every]:
                self._count -= _size(self._contexts.pop(number))

    def matrices(self) -> list[sparse.csr_matrix]:
        """The activations [tokens, d_sae] of each SAE that are remembered; they are forgotten."""
        contexts, self._contexts = [*self._contexts.values()], {}
        made = []
        for sae, d_sae in enumerate(self._d_saes):
            rows = [each[sae] for each in contexts]
            counts, features, values = (np.concatenate(part) for part in zip(*rows, strict=True))
            ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
            made.append(sparse.csr_matrix((values, features, ends), shape=(len(counts), d_sae)))
        return made


def _size(rows: list[Rows]) -> int:
    return sum(len(values) for _, _, values in rows)


def partners(acts: sparse.csr_matrix, most: int) -> list[list[tuple[int, float, int]]]:
    """The features that fire together with each feature.

    Args:
        acts: activations [tokens, d_sae].
        most: how many of them.

    Returns:
        For each feature: others, by the share of the tokens at which either fires that both fire
        at, with that share and how many tokens these are; at least two.
    """
    ones = np.ones(len(acts.data), np.float32)
    fired = sparse.csr_matrix((ones, acts.indices, acts.indptr), shape=acts.shape)
    counts = np.asarray(fired.sum(axis=0), np.float32).ravel()
    found: list[list[tuple[int, float, int]]] = []
    for first, joint in _products(fired, fired):
        rows = np.arange(len(joint))
        joint[rows, first + rows] = 0
        share = joint / np.maximum(counts[first + rows, None] + counts - joint, 1)
        share[joint < _LEAST] = 0
        best = torch.from_numpy(share).topk(min(most, share.shape[1])).indices.numpy()
        for row, columns in zip(rows, best, strict=True):
            shared = [(int(i), float(share[row, i]), int(joint[row, i])) for i in columns]
            found.append([each for each in shared if each[1] > 0])
    return found


def activation_twins(
    own: sparse.csr_matrix, other: sparse.csr_matrix
) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each feature, the one of another SAE whose activations have the largest cosine.

    Args:
        own: activations [tokens, d_sae].
        other: activations of the other SAE at the same tokens.

    Returns:
        Its index, -1 where none fires where a feature does, and the cosine.
    """
    norms = [np.sqrt(np.asarray(each.multiply(each).sum(axis=0)).ravel()) for each in (own, other)]
    index, cosine = np.full(own.shape[1], -1), np.zeros(own.shape[1])
    for first, products in _products(own, other):
        rows = slice(first, first + len(products))
        cosines = products / np.maximum(norms[0][rows, None] * norms[1], 1e-30)
        best = cosines.argmax(axis=1)
        cosine[rows] = cosines[np.arange(len(best)), best]
        index[rows] = np.where(cosine[rows] > 0, best, -1)
    return index, cosine


def _products(
    left: sparse.csr_matrix, right: sparse.csr_matrix
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Rows of left.T @ right, some at a time, and the number of the first."""
    transposed = left.T.tocsr()
    step = max(1, _BLOCK // right.shape[1])
    for first in range(0, transposed.shape[0], step):
        yield first, (transposed[first : first + step] @ right).toarray()
