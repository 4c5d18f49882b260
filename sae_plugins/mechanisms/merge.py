"""Merge features that point the same way: HierarchicalSAE section 4.3, Eq. 7."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.features import FeatureChange, Merged
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.steps import InSteps, Steps, StepsOrShare, share, warn_if_never
from sae_plugins.mechanisms.firing_window import FiringWindow
from sae_plugins.mechanisms.resample import STOP, high_loss_directions

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput

    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)

Arithmetic = Literal["average", "sum", "auto"]

_SLACK = 0.02
"""More than a cosine of bfloat16 rows can be wrong by: 3 roundings of 2^-8, summed in float32."""
_PAIRS_PER_ROW = 64
"""Bounds the memory where a dictionary has collapsed; never reached below 130 rows."""
_REFINED_AT_ONCE = 1 << 22


def _unit(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of a matrix [n, d] at norm 1; on GPUs in bfloat16, whose products are cheap."""
    rows = torch.nn.functional.normalize(matrix[index].float(), dim=1)
    return rows.bfloat16() if rows.is_cuda else rows


def _cosines(matrix: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Cosines [k] of the rows `one` and `other` [k] of a matrix [n, d], each by itself, float64."""
    parts = []
    size = max(1, _REFINED_AT_ONCE // matrix.shape[1])
    for a, b in zip(one.split(size), other.split(size), strict=True):
        rows, others = matrix[a].double(), matrix[b].double()
        dots = (rows * others).sum(dim=1)
        norms = rows.square().sum(dim=1) * others.square().sum(dim=1)
        parts.append(dots / norms.sqrt().clamp_min(1e-300))
    return torch.cat(parts) if parts else matrix.new_zeros(0, dtype=torch.float64)


@torch.no_grad()
def similar_pairs(
    matrices: Sequence[Tensor], index: Tensor, threshold: float, *, tile: int = 1024
) -> tuple[Tensor, Tensor]:
    """All pairs of rows whose cosine exceeds the threshold, without a matrix of n^2 cosines.

    Tiles of approximate cosines find the candidates, with a margin; each candidate's cosine is then
    computed by itself in float64, so the result does not depend on the tiles. A dictionary that has
    collapsed has too many pairs to keep: the 64 m that seem most similar are.

    Args:
        matrices: each [n, d]; where there are several, the smallest of their cosines counts.
        index: the rows to compare, [m].
        threshold: in -1..1.
        tile: rows at once.

    Returns:
        Pairs [k, 2] of places i < j in `index`, in no particular order; their cosines [k], float64.
    """
    kept = _PAIRS_PER_ROW * len(index)
    pairs = torch.zeros(0, 2, dtype=torch.int64, device=index.device)
    guesses = torch.zeros(0, device=index.device)
    for start in range(0, len(index), tile):
        rows = [_unit(matrix, index[start : start + tile]) for matrix in matrices]
        for begin in range(start, len(index), tile):
            columns = [_unit(matrix, index[begin : begin + tile]) for matrix in matrices]
            guess = rows[0] @ columns[0].T
            for one, other in zip(rows[1:], columns[1:], strict=True):
                guess = torch.minimum(guess, one @ other.T)
            near = guess > threshold - _SLACK
            found = (near.triu(1) if begin == start else near).nonzero()
            if not len(found):
                continue
            guesses = torch.cat([guesses, guess[found[:, 0], found[:, 1]].float()])
            pairs = torch.cat([pairs, found + torch.tensor([start, begin], device=found.device)])
            if len(pairs) > kept:
                logger.warning("more than %d pairs of features are alike: the rest waits", kept)
                guesses, best = guesses.topk(kept)
                pairs = pairs[best]
    one, other = index[pairs].unbind(1)
    exact = torch.stack([_cosines(matrix, one, other) for matrix in matrices]).amin(dim=0)
    above = exact > threshold
    return pairs[above], exact[above]


def disjoint_pairs(pairs: Tensor, cosines: Tensor) -> Tensor:
    """Greedily by descending cosine [k], the pairs [k, 2] none of whose members is taken: [m, 2].

    Of equal cosines the pair with the smaller members comes first.
    """
    ranked = zip((-cosines).tolist(), pairs.tolist(), strict=True)
    taken: set[int] = set()
    chosen = []
    for _, pair in sorted(ranked):
        if taken.isdisjoint(pair):
            taken.update(pair)
            chosen.append(pair)
    return torch.tensor(chosen, dtype=torch.int64, device=pairs.device).view(-1, 2)


def firing_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Jaccard index [k] of where the activations [B, k] of k pairs are not 0; 0 if none ever is."""
    fires, others = one != 0, other != 0
    both, either = (fires & others).sum(dim=0), (fires | others).sum(dim=0)
    return both.float() / either.clamp_min(1)


class Merge(Plugin):
    """Merge pairs of features whose decoder rows are alike, at regular steps.

    Of two features the one that started at the lower position stays (with Matryoshka SAEs the one
    in the inner prefix); the other is resampled from badly reconstructed inputs, so d_sae stays.
    Pairs are disjoint, most similar first, and of features that fired in the window. Signed
    activations make opposite rows alike as well; those are left alone.

    The paper's average halves what two exact duplicates wrote together; their sum is exact. For
    features that fire on different tokens the average is right. "auto" goes by their overlap.
    """

    name = "merge"
    meanings = {
        "live": "features that fired within the window",
        "similar_pairs": "pairs of them above the threshold",
        "requested": "merges at this step",
        "features": "merged into others in the run",
    }
    requires = ("firing-window",)
    after = ("resample",)
    transient = ("window",)

    class Options(Plugin.Options):
        """Which features are merged, when and how."""

        every: Annotated[StepsOrShare, InSteps(1)] = Field(
            share(0.02), description="steps between merges"
        )
        threshold: float = Field(
            0.9, gt=0, lt=1, description="cosine above which two features are merged"
        )
        similarity: Literal["decoder", "encoder", "both"] = Field(
            "decoder", description="cosine of decoder rows, of encoder columns, or the lower one"
        )
        arithmetic: Arithmetic = Field(
            "average",
            description="encoder weights and biases become the mean (the paper's Eq. 7), the sum, "
            "or between them by how often the two fire together in the batch (auto)",
        )
        other: Literal["resample", "silence"] = Field(
            "resample",
            description="what becomes of the feature that is merged into another; if silenced, the "
            "plugin resample starts it again when its window is full",
        )
        stop: Steps | None = Field(share(0.8), description=STOP)

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """A silenced feature has a decoder row of zeros, which the TopK family divides by."""
        if options.other == "silence" and architecture.rescaled:
            return (
                "they divide activations by the norm of the decoder row, which is 0 for a feature "
                "that is silenced; choose --merge.other resample"
            )
        return None

    @hookimpl
    def attached(self, run: Run) -> None:
        """Nothing merged yet."""
        self.window: FiringWindow = run.plugin("firing-window")
        warn_if_never(run, self.name, self.options.every, self.options.stop)
        self.merged = 0

    @hookimpl
    def step_ended(self, run: Run, output: TrainStepOutput) -> None:
        """Every `every` steps, request the merges."""
        options = self.options
        if run.step % options.every or (options.stop is not None and run.step > options.stop):
            return
        live = self.window.in_first_order(self.window.steps_fired.nonzero()[:, 0])
        pairs, cosines = similar_pairs(self._matrices(run), live, options.threshold)
        into, source = live[disjoint_pairs(pairs, cosines)].unbind(1)
        run.log("merge/live", len(live))
        run.log("merge/similar_pairs", len(pairs))
        run.log("merge/requested", len(source))
        if len(source) == 0:
            return
        if options.other == "resample":
            directions = high_loss_directions(run.sae, output, len(source), self.rng)
        else:
            directions = run.sae.W_dec.new_zeros(len(source), run.sae.cfg.d_in)
        weight = self._weight(output, into, source)
        run.features.merge(into, source, directions, weight=weight)

    @hookimpl
    def features_changed(self, change: FeatureChange) -> None:
        """Count those that were carried out."""
        if isinstance(change, Merged):
            self.merged += len(change.source)

    @hookimpl
    def training_ended(self, run: Run) -> None:
        """Summarise how many there were."""
        run.summarise("merge/features", self.merged)

    def _matrices(self, run: Run) -> list[Tensor]:
        rows = {"decoder": run.sae.W_dec.data, "encoder": run.sae.W_enc.data.T}
        which = self.options.similarity
        return list(rows.values()) if which == "both" else [rows[which]]

    def _weight(self, output: TrainStepOutput, into: Tensor, source: Tensor) -> Tensor | float:
        if self.options.arithmetic != "auto":
            return 0.5 if self.options.arithmetic == "average" else 1.0
        acts = output.feature_acts.to_dense()
        return 0.5 + 0.5 * firing_overlap(acts[:, into], acts[:, source])
