"""The encoder's product, with no gradient for the activations that an SAE is trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_plugins.framework.fast.pairs import Dense, Pairs


def encode(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    b_dec: Tensor | None,
    choose: Callable[[Tensor], Pairs] = lambda pre: Dense(),
) -> tuple[Tensor, Tensor, Pairs]:
    """(x - b_dec) W + b everywhere, and where it counts.

    Args:
        x: activations [B, d_in], which get no gradient.
        W: [d_in, n].
        b: [n].
        b_dec: [d_in]; None for none.
        choose: the pairs that count, from the product.

    Returns:
        The product [B, n], its values at the chosen pairs, and these. Both have gradients; that of
        the product costs nothing as long as nobody uses it.
    """
    centred = x if b_dec is None else x - b_dec.detach()
    pre: Tensor = _Encoder.apply(None, centred, W, b, b_dec, Dense())
    pairs = choose(pre.detach())
    if isinstance(pairs, Dense):
        return pre, pre, pairs
    return pre, _Encoder.apply(pre.detach(), centred, W, b, b_dec, pairs), pairs


class _Encoder(torch.autograd.Function):
    """The product at pairs, out of the whole one if that is known.

    The gradient of b_dec is -W times the sum of the values' over tokens; by way of x it would take
    a product of matrices.
    """

    @staticmethod
    def forward(
        ctx: Any,
        known: Tensor | None,
        centred: Tensor,
        W: Tensor,
        b: Tensor,
        b_dec: Tensor | None,
        pairs: Pairs,
    ) -> Tensor:
        device = centred.device.type
        ctx.autocast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device)
        ctx.pairs, ctx.shifted = pairs, b_dec is not None
        ctx.save_for_backward(centred, W)
        if known is not None:
            return pairs.of(known)
        if ctx.autocast:
            return centred @ W + b  # addmm would round the bias, too
        return torch.addmm(b, centred, W)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        centred, W = ctx.saved_tensors
        with torch.autocast(centred.device.type, ctx.dtype, enabled=ctx.autocast):
            W_gradient = ctx.pairs.outer(gradient, centred).t()
        sums = ctx.pairs.feature_sums(gradient)
        return None, None, W_gradient, sums, -(W @ sums) if ctx.shifted else None, None
