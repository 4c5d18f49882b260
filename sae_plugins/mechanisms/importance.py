"""How much the reconstruction depends on each feature: Dynamic Feature Disentanglement, Eq. 3."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE

    from sae_plugins.framework.run import Run

_ROWS = 256
"""Rows that are squared at once; bounds the memory."""


def column_sums(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums over the batch of what `function` makes of rows: [n] for [B, n], in float32 or better.

    As products with ones: torch's own reduction over the first axis is 20 times slower on a CPU.
    """
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    sums = matrix.new_zeros(matrix.shape[1], dtype=dtype)
    for rows in matrix.split(_ROWS):
        sums += sums.new_ones(len(rows)) @ function(rows.to(dtype)).to(dtype)
    return sums


def column_norms(gradient: Tensor) -> Tensor:
    """||g_:i||_2 over the batch: [n] for [B, n], in float32 or better."""
    return column_sums(gradient, torch.square).sqrt()


def importance(gradient_norms: Tensor, frequency: Tensor) -> Tensor:
    """s_i = ||dL_recon/df_i||_2 freq_i / max_j freq_j, Eq. 3: [n] for two [n]."""
    tiny = torch.finfo(frequency.dtype).tiny
    return gradient_norms * frequency / frequency.max().clamp_min(tiny)


class Importance(Plugin):
    """Each feature's importance to the reconstruction; measured where another plugin uses it.

    The gradient is caught on its way back from the decoder to the features, so there is no second
    backward pass and no further product. It is there only after a step's backward pass: within a
    step, the scores are those of the step before. Matryoshka SAEs' inner losses, and the auxiliary
    losses of others, do not count: they do not pass through the decoder of the whole SAE.
    """

    name = "importance"
    requires = ("firing-frequency",)

    @hookimpl
    def attached(self, run: Run) -> None:
        """Track the gradient's norms."""
        size, device = run.features.d_sae, run.sae.device
        self.gradient_norms = run.features.track(
            self, "gradient_norms", torch.zeros(size, device=device)
        )
        self.in_use = False

    def use(self, run: Run) -> None:
        """Measure from now on; for the `attached` of whoever requires this plugin."""
        if not self.in_use:

            def decode(sae: TrainingSAE[Any], feature_acts: Tensor) -> Tensor:
                decoded: Tensor = type(sae).decode(sae, self.watched(feature_acts))
                return decoded

            # bound to the SAE, so that a deep copy of it decodes with its own weights
            run.sae.decode = MethodType(decode, run.sae)  # type: ignore[method-assign]
        self.in_use = True

    def scores(self, run: Run) -> Tensor:
        """s_i of the last backward pass, [d_sae], float32; zeros before the first."""
        return importance(self.gradient_norms, run.plugin("firing-frequency").mean())

    def relative_scores(self, run: Run) -> Tensor:
        """s_i / max_j s_j, [d_sae] in 0..1; ones as long as nothing is known."""
        scores = self.scores(run)
        greatest = scores.max()
        tiny = torch.finfo(scores.dtype).tiny
        return torch.where(greatest > 0, scores / greatest.clamp_min(tiny), 1.0)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def watched(self, feature_acts: Tensor) -> Tensor:
        """An alias of activations [B, d_sae] whose gradient, the decoder's share, is measured."""
        feature_acts = feature_acts.to_dense() if feature_acts.is_sparse else feature_acts
        alias = feature_acts.view_as(feature_acts)
        if alias.requires_grad:
            alias.register_hook(self._measure)
        return alias

    @torch.no_grad()
    def _measure(self, gradient: Tensor) -> None:
        self.gradient_norms.copy_(column_norms(gradient))
