"""A penalty on overlapping decoder rows: Dynamic Feature Disentanglement, Eqs. 4 and 5.

Every form of the penalty is a sum over ordered pairs of unit rows, with cosines c_ij = w_i . w_j,

    Omega = sum_{i != j} a_ij c_ij^2,

in which the weights a_ij carry no gradient. Then sum_i w_i . dOmega/dw_i = 4 Omega, so it is enough
to know the gradient; and that costs 3.25 n d^2 or 3 n^2 d operations and never n^2 numbers of
memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import InSteps, Steps, StepsOrShare, warn_if_never
from sae_plugins.mechanisms.unit_norm_decoder import remove_parallel_

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)

EPSILON = 1e-6
"""epsilon of Eq. 5."""
TILE = 1024
"""Rows whose cosines with as many others are in memory at once."""
DUPLICATE = 0.9
"""|cos| of two decoder rows from which on the closing summary counts them as one feature twice."""


def overlap_gradient(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gradient of sum_{i != j} s_i s_j (w_i . w_j)^2: 3.25 n d min(n, d) operations.

    The weights separate, so the sum is |W^T S W|_F^2 - sum_i s_i^2 |w_i|^4; the fewer rows than
    columns there are, the cheaper are all cosines instead.

    Args:
        rows: w_i, [n, d].
        weights: s_i, [n]; 1 if None.
    """
    scaled = rows if weights is None else rows * weights[:, None]
    if len(rows) < rows.shape[1]:
        cosines = _symmetric_product(rows.T, rows.T).fill_diagonal_(0)
        gradient = (cosines @ scaled).mul_(4)
        return gradient if weights is None else gradient.mul_(weights[:, None])
    own = torch.linalg.vector_norm(rows, dim=1).square()
    own = own if weights is None else own * weights
    gradient = scaled @ _symmetric_product(rows, scaled).mul_(4)
    return gradient.addcmul_(own[:, None], scaled, value=-4)


def _symmetric_product(one: Tensor, other: Tensor) -> Tensor:
    """one^T other, [d, d] for two [n, d], known to be symmetric: in 5/8 of the operations."""
    d = one.shape[1]
    product = one.new_empty(d, d)
    width = -(-d // 4)
    for start in range(0, d, width):
        end = min(start + width, d)
        block = one[:, start:end].T @ other[:, :end]
        product[start:end, :end] = block
        product[:start, start:end] = block[:, :start].T
    return product


def tiled_overlap_gradient(
    rows: Tensor,
    weights: Tensor | None = None,
    *,
    thresholds: Tensor | None = None,
    over_cosine: bool = False,
    tile: int = TILE,
) -> Tensor:
    """Gradient of sum_{i != j} a_ij (w_i . w_j)^2 pair by pair: 3 n^2 d operations.

    a_ij = s_i s_j, only where |w_i . w_j| > t_i, over |w_i . w_j| + epsilon if `over_cosine`.

    Args:
        rows: w_i, [n, d].
        weights: s_i, [n]; 1 if None.
        thresholds: t_i, [n]; all pairs count if None.
        over_cosine: divide by the cosine, the reading of Eq. 5 that makes it an L1 penalty.
        tile: rows at once; memory grows with its square.
    """
    scaled = rows if weights is None else rows * weights[:, None]
    gradient = torch.zeros_like(rows)
    for i in range(0, len(rows), tile):
        left = slice(i, i + tile)
        for j in range(i, len(rows), tile):
            right = slice(j, j + tile)
            pull = rows[left] @ rows[right].T
            sizes = pull.abs()
            if thresholds is None:
                pull *= 2  # the pairs (i, j) and (j, i)
            else:
                above_left = (sizes > thresholds[left, None]).to(pull.dtype)
                pull *= above_left.add_(sizes > thresholds[right])
            if over_cosine:
                pull /= sizes.add_(EPSILON)
            if i == j:
                pull.fill_diagonal_(0).mul_(0.5)  # this tile has each pair twice
            gradient[left].addmm_(pull, scaled[right], alpha=2)
            gradient[right].addmm_(pull.T, scaled[left], alpha=2)
    return gradient if weights is None else gradient.mul_(weights[:, None])


def penalty_of_directions(decoder: Tensor, gradient_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Omega of the decoder's normalised rows [n, d]; `gradient_at` gives it for unit rows.

    Differentiable in the decoder; a row of zeros has no direction.
    """
    with torch.no_grad():
        norms = torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min_(1e-12)
        rows = decoder / norms
        gradient = gradient_at(rows)
        along = remove_parallel_(gradient, rows)
        gradient.div_(norms)  # both are what the normalisation does to it
    omega: Tensor = _WithGradient.apply(decoder, along.sum() / 4, gradient)
    return omega


class _WithGradient(torch.autograd.Function):
    """A number that is known, and so is its gradient in the first argument; for one backward."""

    @staticmethod
    def forward(ctx: Any, argument: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0].mul_(scale), None, None


def nearest(rows: Tensor, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """For each of unit rows [n, d] the other one with the largest |cosine|: cosines, indices, [n].

    Args:
        rows: w_i.
        tile: rows at once; memory grows with its product with n.
    """
    cosines, indices = [rows.new_empty(0)], [torch.empty(0, dtype=torch.int64, device=rows.device)]
    for start in range(0, len(rows), tile):
        part = rows[start : start + tile] @ rows.T
        part.diagonal(start).zero_()
        indices.append(part.abs().argmax(dim=1))
        cosines.append(part.gather(1, indices[-1][:, None]).squeeze(1))
    return torch.cat(cosines), torch.cat(indices)


def overlaps(rows: Tensor, tile: int = TILE) -> dict[str, float | int]:
    """Mean and largest |cos| over the pairs of rows [n, d], and the pairs above `DUPLICATE`."""
    unit = torch.nn.functional.normalize(rows.detach().float(), dim=1)
    n, total, largest, duplicates = len(unit), 0.0, 0.0, 0
    for start in range(0, n, tile):
        # row i with all j > i
        sizes = (unit[start : start + tile] @ unit[start:].T).abs_().triu_(diagonal=1)
        total += float(sizes.double().sum())
        largest = max(largest, float(sizes.max()))
        duplicates += int((sizes > DUPLICATE).sum())
    pairs = max(1, n * (n - 1) // 2)
    return {"mean_cosine": total / pairs, "largest_cosine": largest, "duplicates": duplicates}


class DecoderOrthogonality(Plugin):
    """Penalise squared cosines of decoder rows: of important features, of all, or of close ones.

    As printed, Eq. 5 divides by |w_i . w_i|, which is 1: the penalty is an importance-weighted sum
    of squared cosines. The scores are those of the step before, see `importance`. Rows are
    normalised here, so the penalty does not act on their lengths.
    """

    name = "decoder-orthogonality"
    meanings = {
        "mean_cosine": "|cos| of two decoder rows, mean over all pairs",
        "largest_cosine": "the largest |cos| of two decoder rows",
        "duplicates": f"pairs of decoder rows with |cos| above {DUPLICATE}",
    }
    requires = ("importance",)

    class Options(Plugin.Options):
        """Which pairs count, and how much."""

        weight: float = Field(
            0.1, ge=0, title="lambda_ortho", description="weight of the penalty in the loss"
        )
        weighting: Literal["importance", "none"] = Field(
            "importance",
            title="s_i s_j / max s_k s_l",
            description="weigh pairs by their features' importance, or all the same",
        )
        denominator: Literal["self", "pair"] = Field(
            "self",
            title="alpha_ij",
            description="of Eq. 5: |w_i . w_i| = 1, as printed, or |w_i . w_j|, which makes the "
            "penalty one on |cos| that gathers rows in bundles of duplicates where d_sae > d_in",
        )
        mask: Literal["none", "constant", "adaptive"] = Field(
            "none",
            description="count only pairs with |cos| above the threshold, or above "
            "threshold x (1 - sensitivity x p_i (1 - p_i)), Eq. 2 with firing frequencies p_i",
        )
        threshold: float = Field(
            0.3, ge=0, le=1, title="tau_base", description="|cos| above which masked pairs count"
        )
        sensitivity: float = Field(
            1.0, ge=0, le=4, title="beta", description="of an adaptive mask to the frequency"
        )
        reduction: Literal["mean", "sum"] = Field(
            "mean", description="over features; the sum, as printed, grows with d_sae^2 / d_in"
        )
        start: Steps = Field(0, description="first step with the penalty")
        every: Annotated[StepsOrShare, InSteps(1)] = Field(
            1, description="approximation: only at every so many steps, as much stronger"
        )
        top: float = Field(
            1.0,
            gt=0,
            le=1,
            description="approximation: only pairs of the most important features, this share of "
            "them; needs weighting by importance",
        )

        @field_validator("top")
        @classmethod
        def _of_the_important(cls, top: float, given: ValidationInfo) -> float:
            if top < 1 and given.data.get("weighting") == "none":
                raise ValueError("it keeps the most important, so it needs weighting importance")
            return top

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Ask for importance where it counts; warn of the reading that collapses."""
        warn_if_never(run, self.name, max(self.options.start, self.options.every))
        if self.options.weighting == "importance":
            run.plugin("importance").use(run)
        n, d = run.sae.W_dec.shape
        if self.options.denominator == "pair" and n > d:
            logger.warning(
                "decoder-orthogonality.denominator = pair penalises |cos|, which is least for "
                "bundles of duplicates where d_sae (%d) exceeds d_in (%d)",
                n,
                d,
            )

    @hookimpl
    def extra_losses(self, run: Run) -> dict[str, Tensor] | None:
        """Add the penalty."""
        options = self.options
        if run.step < options.start or run.step % options.every:
            return None
        decoder: Tensor = run.sae.W_dec
        decoder = decoder.to(torch.promote_types(decoder.dtype, torch.float32))
        with torch.no_grad():
            weights, thresholds = self._weights(run, decoder), self._thresholds(run, decoder)
        if weights is not None and options.top < 1:
            weights, chosen = weights.topk(max(1, round(options.top * len(decoder))))
            decoder = decoder.index_select(0, chosen)
            thresholds = None if thresholds is None else thresholds[chosen]
        over_cosine = options.denominator == "pair"
        if thresholds is None and not over_cosine:
            gradient_at = partial(overlap_gradient, weights=weights)
        else:
            gradient_at = partial(
                tiled_overlap_gradient,
                weights=weights,
                thresholds=thresholds,
                over_cosine=over_cosine,
            )
        scale = options.weight * options.every
        if options.denominator == "self":
            scale /= 1 + EPSILON
        if options.reduction == "mean":
            scale /= run.features.d_sae
        return {"overlap": scale * penalty_of_directions(decoder, gradient_at)}

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Say how close the rows ended up."""
        for name, value in overlaps(run.sae.W_dec).items():
            run.summarise(f"{self.name}/{name}", value)

    def _weights(self, run: Run, rows: Tensor) -> Tensor | None:
        if self.options.weighting == "none":
            return None
        scores: Tensor = run.plugin("importance").relative_scores(run)
        return scores.to(rows.dtype)

    def _thresholds(self, run: Run, rows: Tensor) -> Tensor | None:
        if self.options.mask == "none":
            return None
        thresholds = rows.new_full((len(rows),), self.options.threshold)
        if self.options.mask == "adaptive":
            variance = run.plugin("firing-frequency").bernoulli_variance()
            thresholds *= 1 - self.options.sensitivity * variance.to(rows.dtype)
        return thresholds
