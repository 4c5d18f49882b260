"""Unit-norm decoder rows: the constrained Adam of HybridOrder section 4.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

    from sae_plugins.framework.run import Run


_AT_ONCE = 2**20
"""Numbers; memory that is used again costs a CPU half the time of memory that is new."""


@torch.no_grad()
def remove_parallel_(gradient: Tensor, rows: Tensor) -> Tensor:
    """Remove from each gradient row [n, d] its component along the unit row [n, d], in place.

    Returns:
        Those components, [n].
    """
    size = max(1, _AT_ONCE // rows.shape[1])
    parts = []
    for part, units in zip(gradient.split(size), rows.split(size), strict=True):
        along = torch.linalg.vecdot(part, units)
        part.addcmul_(units, along[:, None], value=-1)
        parts.append(along)
    return torch.cat(parts)


@torch.no_grad()
def normalise_(rows: Tensor) -> None:
    """Scale each row [n, d] to norm 1, in place; rows of zeros stay."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12))


@torch.no_grad()
def pull_on_lengths(acts: Tensor, coefficient: Tensor | float, p: float = 1.0) -> Tensor:
    """The derivative of an L1 loss by the norms [n] of decoder rows, where all of these are 1.

    Args:
        acts: [B, n], which the loss weighs by the norms.
        coefficient: of the loss, a number or [B].
        p: of the norm of a token's activations, where that is not L1.
    """
    acts = acts.to(torch.promote_types(acts.dtype, torch.float32))
    per_token = torch.as_tensor(coefficient, dtype=acts.dtype, device=acts.device)
    per_token = per_token.expand(len(acts))
    if p != 1:
        norms = torch.linalg.vector_norm(acts, p, dim=1).clamp_min(torch.finfo(acts.dtype).tiny)
        acts, per_token = acts**p, per_token * norms ** (1 - p)
    return per_token @ acts / len(acts)


class UnitNormDecoder(Plugin):
    """Keep every decoder row at norm 1: project its gradient, renormalise after the update.

    The gradient is projected before it is clipped, so that the clip counts what turns the rows and
    not what would lengthen them; and neither Adam's moments nor weight decay get any of the latter.

    SAELens' L1 loss of a standard SAE weighs activations by the norms of their rows, which are 1.
    Where the gradient is not projected, it has no part of that weight: the loss is the plain L1
    norm, as papers print it.
    """

    name = "unit-norm-decoder"
    claims = ("decoder_norm",)
    state_version = 2  # until then, gradients were projected after the clip

    class Options(Plugin.Options):
        """What is done besides the renormalisation."""

        project: bool = Field(
            True,
            description="leave only what turns the rows in their gradient; false only renormalises",
        )

    options: Options

    @hookimpl
    def attached(self, run: Run) -> None:
        """Start from unit rows."""
        normalise_(run.sae.W_dec.data)

    @hookimpl
    def extra_losses(
        self, run: Run, step_input: TrainStepInput, output: TrainStepOutput
    ) -> dict[str, Tensor] | None:
        """Add what makes SAELens' L1 loss the plain one, whose value is the same."""
        sae: Any = run.sae
        if self.options.project or run.architecture.name != "standard":
            return None
        acts = output.feature_acts.detach()
        pull = pull_on_lengths(acts, step_input.coefficients["l1"], sae.cfg.lp_norm)
        lengths = torch.linalg.vector_norm(sae.W_dec, dim=1)
        return {"plain_l1": pull.to(lengths) @ (1 - lengths)}

    @hookimpl
    def project(self, gradient: Tensor, rows: Tensor) -> None:
        """Leave only what turns the rows."""
        if self.options.project:
            remove_parallel_(gradient, rows)

    @hookimpl
    def after_update(self, run: Run) -> None:
        """Renormalise the rows."""
        normalise_(run.sae.W_dec.data)
