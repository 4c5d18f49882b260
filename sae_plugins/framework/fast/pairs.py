"""Pairs of a token and a feature: all of them, or those that fire, with the same operations.

Values at the pairs are a matrix [B, n] where all pairs count, and a list [P] where some do. A list
costs three bags of torch's `embedding_bag` in place of three products of matrices: one over the
features of a token decodes, its gradient for the values multiplies token by feature, and one over
the tokens of a feature gives the gradient of a weight. No sum is atomic, so that a GPU repeats it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Dense:
    """All pairs of B tokens and n features."""

    def __init__(self, mask: Tensor | None = None) -> None:
        """Take all pairs; `only` zeroes the values outside of `mask` [B, n]."""
        self.mask = mask

    def of(self, matrix: Tensor) -> Tensor:
        """The entries of a matrix [B, n] at the pairs."""
        return matrix

    def only(self, values: Tensor) -> Tensor:
        """Values, with 0 at the pairs that do not count."""
        return values if self.mask is None else values * self.mask

    def by_feature(self, vector: Tensor) -> Tensor:
        """The entries of a vector [n] at the pairs, to multiply values with."""
        return vector

    def times(self, values: Tensor, W: Tensor) -> Tensor:
        """values @ W: [B, d] for W [n, d]."""
        return values @ W

    def token_sums(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """The sum over each token's values, [B], weighted by feature if there are weights [n]."""
        if weights is None:
            return values.sum(-1)
        with torch.autocast(values.device.type, enabled=False):
            return values @ weights

    def outer(self, values: Tensor, x: Tensor) -> Tensor:
        """values.T @ x: [n, d] for x [B, d]."""
        return values.t() @ x

    def feature_sums(self, values: Tensor) -> Tensor:
        """The sum over each feature's values: [n]."""
        return values.sum(0)

    def nested(self, values: Tensor, W: Tensor, widths: list[int]) -> Tensor:
        """What each range of features adds to values @ W: [levels, B, d], up to each width."""
        starts = [0, *widths[:-1]]
        ranges = zip(starts, widths, strict=True)
        return torch.stack([values[:, start:end] @ W[start:end] for start, end in ranges])

    def dense(self, values: Tensor) -> Tensor:
        """Values as a matrix [B, n]."""
        return values

    def counted(self, values: Tensor) -> Tensor:
        """Values as a matrix [B, n], in the layout that is cheapest to count in."""
        return values


class Sparse:
    """Some pairs, in the order of their tokens; the operations are those of `Dense`."""

    def __init__(self, features: Tensor, starts: Tensor, tokens: Tensor, shape: torch.Size) -> None:
        """Take pairs (tokens[i], features[i]) of [B, n]; those of a token begin at its start."""
        self.features, self.starts, self.tokens, self.shape = features, starts, tokens, shape

    @classmethod
    def of_rows(cls, indices: Tensor, n: int) -> Sparse:
        """The same number of features for each token: indices [B, k] below n."""
        rows, k = indices.shape
        starts = torch.arange(0, indices.numel(), k, device=indices.device)
        tokens = torch.arange(rows, device=indices.device).repeat_interleave(k)
        return cls(indices.flatten(), starts, tokens, torch.Size((rows, n)))

    @classmethod
    def of_flat(cls, flat: Tensor, shape: torch.Size) -> Sparse:
        """Sorted positions in the flattened matrix [B, n]."""
        first = torch.arange(0, shape.numel(), shape[1], device=flat.device)
        tokens = torch.div(flat, shape[1], rounding_mode="floor")
        return cls(flat - tokens * shape[1], torch.searchsorted(flat, first), tokens, shape)

    @property
    def flat(self) -> Tensor:
        """The pairs' positions in the flattened matrix [B, n]."""
        return self.tokens * self.shape[1] + self.features

    @cached_property
    def by_features(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs in the order of their features: which, their tokens, and where each begins."""
        features, order = torch.sort(self.features, stable=True)
        first = torch.arange(self.shape[1], device=order.device)
        return order, self.tokens[order], torch.searchsorted(features, first)

    def of(self, matrix: Tensor) -> Tensor:
        """See `Dense`."""
        return matrix.flatten()[self.flat]

    def only(self, values: Tensor) -> Tensor:
        """See `Dense`."""
        return values

    def by_feature(self, vector: Tensor) -> Tensor:
        """See `Dense`."""
        entries: Tensor = _ByFeature.apply(vector, self)
        return entries

    def times(self, values: Tensor, W: Tensor) -> Tensor:
        """See `Dense`."""
        product = _bags(self.features, W.detach(), self.starts, values)
        if W.requires_grad:
            product = _WeightGradient.apply(product, W, values.detach(), self)
        return product

    def token_sums(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `Dense`."""
        weights = values.new_ones(self.shape[1]) if weights is None else weights
        return self.times(values, weights[:, None])[:, 0]

    def outer(self, values: Tensor, x: Tensor) -> Tensor:
        """See `Dense`."""
        order, tokens, starts = self.by_features
        return _bags(tokens, x, starts, values[order])

    def feature_sums(self, values: Tensor) -> Tensor:
        """See `Dense`."""
        return self.outer(values, values.new_ones(self.shape[0], 1))[:, 0]

    def nested(self, values: Tensor, W: Tensor, widths: list[int]) -> Tensor:
        """See `Dense`: one pass over pairs of (range, token) and feature."""
        levels, (rows, n) = len(widths), self.shape
        bounds = torch.tensor(widths, device=values.device)
        level = torch.searchsorted(bounds, self.features, right=True)
        places, order = torch.sort(level * rows + self.tokens, stable=True)
        shape = torch.Size((levels * rows, n))
        starts = torch.searchsorted(places, torch.arange(shape[0], device=values.device))
        pairs = Sparse(self.features[order], starts, places, shape)
        return pairs.times(values[order], W).view(levels, rows, -1)

    def dense(self, values: Tensor) -> Tensor:
        """See `Dense`."""
        nothing = values.new_zeros(self.shape.numel())
        return nothing.scatter(0, self.flat, values).view(self.shape)

    def counted(self, values: Tensor) -> Tensor:
        """See `Dense`."""
        places = torch.stack((self.tokens, self.features))
        return torch.sparse_coo_tensor(places, values, self.shape, check_invariants=False)


Pairs = Dense | Sparse


def above(x: Tensor, bound: Tensor | float) -> Tensor:
    """Where entries are above a bound; NaN is above it, so that a loss shows it."""
    return torch.le(x, bound).logical_not_()


def _bags(indices: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows, a bag each: torch's own, whose gradient for the weights is cheap."""
    return embedding_bag(indices, rows, starts, mode="sum", per_sample_weights=weights)


class _WeightGradient(torch.autograd.Function):
    """A product of values and W that has been made without a gradient for W, with it."""

    @staticmethod
    def forward(ctx: Any, product: Tensor, W: Tensor, values: Tensor, pairs: Sparse) -> Tensor:
        ctx.save_for_backward(values)
        ctx.pairs = pairs
        return product.view_as(product)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (values,) = ctx.saved_tensors
        return gradient, ctx.pairs.outer(values, gradient.contiguous()), None, None


class _ByFeature(torch.autograd.Function):
    """The entries of a vector at pairs; torch's own gradient would add them up atomically."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, pairs: Sparse) -> Tensor:
        ctx.pairs = pairs
        return vector[pairs.features]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.pairs.feature_sums(gradient.contiguous()), None
