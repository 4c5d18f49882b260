"""Unit-norm decoder rows: ConstrainedAdam, as in HybridOrder section 4.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
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


class UnitNormDecoder(Plugin):
    """Keep every decoder row at norm 1: project its gradient, renormalise after the update."""

    name = "unit-norm-decoder"
    claims = ("decoder_norm",)

    @hookimpl
    def attached(self, run: Run) -> None:
        """Start from unit rows."""
        normalise_(run.sae.W_dec.data)

    @hookimpl
    def before_update(self, run: Run) -> None:
        """Leave only what turns the rows, so that Adam's moments are not spent on their length."""
        if run.sae.W_dec.grad is not None:
            remove_parallel_(run.sae.W_dec.grad, run.sae.W_dec.data)

    @hookimpl
    def after_update(self, run: Run) -> None:
        """Renormalise the rows."""
        normalise_(run.sae.W_dec.data)
