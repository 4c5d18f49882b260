"""A penalty on each decoder row's nearest other one, after OrtSAE (Korznikov et al. 2025)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.mechanisms.decoder_orthogonality import nearest, penalty_of_directions

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run


def nearest_overlap_gradient(rows: Tensor, order: Tensor, chunk: int) -> Tensor:
    """Gradient of sum_i max_{j != i} (w_i . w_j)^2, over the j in the chunk of i: [n, d].

    Args:
        rows: w_i, [n, d].
        order: [n], a permutation; so many of it in turn are a chunk.
        chunk: rows of one.
    """
    gradient = torch.zeros_like(rows)
    for members in order.split(chunk):
        if len(members) < 2:
            continue
        own = rows[members]
        cosines, others = nearest(own)
        pull = 2 * cosines[:, None]
        gradient.index_add_(0, members, pull * own[others])
        gradient.index_add_(0, members[others], pull * own)
    return gradient


class NearestOrthogonality(Plugin):
    """Penalise the squared cosine of each decoder row with the one that is nearest to it.

    After the idea of OrtSAE, whose cost grows with d_sae and not with its square, since rows are
    compared within chunks, which are drawn for each step. The penalty is a mean over rows. It
    does not act on their lengths.
    """

    name = "nearest-orthogonality"

    class Options(Plugin.Options):
        """How much, and with how many others a row is compared."""

        weight: float = Field(0.25, ge=0, description="weight of the penalty in the loss")
        chunk: int = Field(8192, ge=2, description="rows that are compared with each other")

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Number the features, so that chunks do not depend on where they stand."""
        numbers = torch.arange(run.features.d_sae, device=run.sae.device)
        self.numbers = run.features.track(self, "numbers", numbers, reset=None)

    @hookimpl
    def extra_losses(self, run: Run) -> dict[str, Tensor]:
        """Add the penalty."""
        decoder: Tensor = run.sae.W_dec
        decoder = decoder.to(torch.promote_types(decoder.dtype, torch.float32))
        order = self.numbers
        if len(decoder) > self.options.chunk:
            drawn = torch.randperm(len(decoder), generator=self.rng).to(order.device)
            order = drawn[order].argsort()
        gradient_at = partial(nearest_overlap_gradient, order=order, chunk=self.options.chunk)
        scale = self.options.weight / len(decoder)
        return {"nearest": scale * penalty_of_directions(decoder, gradient_at)}
