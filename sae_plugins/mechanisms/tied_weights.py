"""Tied encoder and decoder weights: HybridOrder section 5."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_plugins.framework.run import Run


class TiedWeights(Plugin):
    """Train one matrix: the encoder is the decoder's transpose, and has the sum of both gradients.

    In the forward pass the encoder reads the decoder itself; what the losses of other plugins give
    W_enc is added before the decoder's gradient is projected, and before the clip, which counts the
    sum once. W_enc is a copy of the decoder after each update, and after each change of features.
    When the matrices part, both go on from where they are, with their moments.
    """

    name = "tied-weights"
    claims = ("encoder",)
    # whose updates are then copied: they unwind
    before = ("unit-norm-decoder", "importance-lr", "slow-decoder")

    class Options(Plugin.Options):
        """How long."""

        until: float = Field(
            1.0,
            gt=0,
            le=1,
            description="share of the run after which the two matrices are trained apart",
        )

    options: Options

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """It needs an encoder of its own."""
        if architecture.tied:
            return "their encoder is the decoder's transpose already, by its definition"
        return None

    @hookimpl
    def attached(self, run: Run) -> None:
        """Begin tied, as every SAE that is drawn.

        Raises:
            PluginError: the encoder is one of its own.
        """
        encoder, decoder = run.sae.W_enc, run.sae.W_dec
        if not torch.allclose(encoder, decoder.T, rtol=1e-4, atol=1e-6):
            raise PluginError(
                "the SAE to begin with has an encoder that is not its decoder's transpose, and "
                "that would be lost: leave the plugin out, or begin with an SAE that was trained "
                "with tied weights (--from_pretrained_path)"
            )
        self.tied, self.begins = True, False

    @hookimpl
    def before_forward(self, run: Run) -> None:
        """Put the decoder in the encoder's place; they part between two accumulation windows."""
        if self.begins:  # a window
            last = math.floor(self.options.until * run.total_steps + 1e-9)  # 0.29 of 100 is 29
            self.tied, self.begins = run.step <= last, False
        if self.tied:
            with torch.enable_grad():
                vars(run.sae)["W_enc"] = run.sae.W_dec.T

    @hookimpl
    def after_forward(self, run: Run) -> None:
        """Give the encoder its place back."""
        vars(run.sae).pop("W_enc", None)

    @hookimpl
    def project(self, run: Run, gradient: Tensor) -> None:
        """Add what the losses of others have for the encoder itself."""
        encoder = run.sae.W_enc
        if self.tied and encoder.grad is not None:
            gradient += encoder.grad.T
            encoder.grad = None

    @hookimpl
    def before_update(self, run: Run) -> None:
        """Have both gradients be the sum."""
        encoder, decoder = run.sae.W_enc, run.sae.W_dec
        if self.tied and decoder.grad is not None:
            encoder.grad = torch.empty_like(encoder).copy_(decoder.grad.T)

    @hookimpl
    def after_update(self, run: Run) -> None:
        """Copy the decoder."""
        self._copy(run)
        self.begins = True

    @hookimpl
    def features_changed(self, run: Run) -> None:
        """Copy the decoder, whose merged and new features have other norms than the encoder's."""
        self._copy(run)

    def _copy(self, run: Run) -> None:
        if self.tied:
            run.sae.W_enc.data.copy_(run.sae.W_dec.data.T)
