"""How much the reconstruction depends on each feature: Dynamic Feature Disentanglement, Eq. 3."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput

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


@torch.no_grad()
def feature_gradient(sae: TrainingSAE[Any], sae_in: Tensor, sae_out: Tensor) -> Tensor:
    """dL_recon/df, [B, d_sae], for inputs and reconstructions [B, d_in]: dL_recon/dx_hat W_dec^T.

    The decoder is linear, so there is no pass back through it.
    """
    with torch.enable_grad():
        out = sae_out.detach().requires_grad_()
        loss = sae.mse_loss_fn(out, sae_in.detach()).sum(dim=-1).mean()
        (gradient,) = torch.autograd.grad(loss, out)
    if sae.cfg.normalize_activations == "constant_norm_rescale":  # which is undone after decoding
        gradient = gradient * torch.linalg.vector_norm(sae_in, dim=-1, keepdim=True)
        gradient = gradient / sae.cfg.d_in**0.5
    elif sae.cfg.normalize_activations == "layer_norm":
        gradient = gradient * sae_in.std(dim=-1, keepdim=True)
    rows: Tensor = sae.W_dec
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        rows = torch.nn.functional.normalize(rows, dim=-1)
    return gradient.to(rows.dtype) @ rows.T


class Importance(Plugin):
    """Each feature's importance to the reconstruction; measured where another plugin uses it.

    Either of this step, by a closed form. Or of the step before, whose gradient is caught on its
    way back from the decoder to the features, at no further product. Matryoshka SAEs' inner losses,
    and the auxiliary losses of others, do not count: they do not pass through the decoder of the
    whole SAE.
    """

    name = "importance"
    requires = ("firing-frequency",)

    class Options(Plugin.Options):
        """Which gradient it is."""

        step: Literal["before", "this"] = Field(
            "before",
            description="whose gradient. before: of the step before, which costs nothing; this: of "
            "this step, as printed, which takes one product more",
        )

    options: Options

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
        if not self.in_use and self.options.step == "before":

            def decode(sae: TrainingSAE[Any], feature_acts: Tensor) -> Tensor:
                decoded: Tensor = type(sae).decode(sae, self.watched(feature_acts))
                return decoded

            # bound to the SAE, so that a deep copy of it decodes with its own weights
            run.sae.decode = MethodType(decode, run.sae)  # type: ignore[method-assign]
        self.in_use = True

    @hookimpl
    def extra_losses(self, output: TrainStepOutput, run: Run) -> None:
        """Measure this step's gradient; no loss is added."""
        if self.in_use and self.options.step == "this":
            self._measure(feature_gradient(run.sae, output.sae_in, output.sae_out))

    def scores(self, run: Run) -> Tensor:
        """s_i of the last gradient, [d_sae], float32; zeros before the first."""
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
