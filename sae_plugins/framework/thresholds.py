"""Thresholds of activations, set such that as many features are active as are wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.saelens import interruption
from sae_plugins.framework.architectures import SHARING_A_THRESHOLD

logger = logging.getLogger(__name__)

CALIBRATION_TOKENS = 4096
"""Tokens that set a threshold: the L0 of others is then within a few per cent of the wanted one."""


@torch.no_grad()
def threshold_for_l0(acts: Tensor, l0: float) -> float:
    """The threshold above which `l0` activations per token lie, on average over these tokens.

    It serves any SAE that has one threshold for all of its features, or can be given one.

    Args:
        acts: before any threshold, [n, d_sae]; those that are not positive never count.
        l0: active features per token that are wanted; times n it is rounded to a whole number.

    Returns:
        A number between the last activation that is to be active and the next; 0 where no more are
        positive than are wanted. Where both are equal, no threshold tells them apart, and neither
        is active.
    """
    positive, wanted = acts.flatten().relu(), round(l0 * len(acts))
    if wanted >= positive.numel():
        return 0.0
    largest = positive.topk(wanted + 1).values  # in order
    last, following = largest[-2:] if wanted else (largest[0], largest[0])
    middle = last / 2 + following / 2
    # between neighbours in the dtype there is nothing, and what equals the threshold is not active
    return float(middle if middle < last else following)


def check_calibration(sae: Any) -> None:
    """Refuse to calibrate an SAE that has no threshold.

    Raises:
        PluginError: names its architecture.
    """
    if not hasattr(sae, "topk_threshold"):
        raise PluginError(
            f"calibrate_threshold is for {' and '.join(SHARING_A_THRESHOLD)} SAEs, and "
            f"{sae.cfg.architecture()} SAEs have no threshold that lags: leave it out"
        )


@torch.no_grad()
def calibrate(sae: Any, following: Iterator[Tensor], count: int, last: Tensor | None) -> None:
    """Set the threshold of a BatchTopK SAE such that k features per token are active.

    In training exactly k are, whatever the threshold: it follows slowly, and begins at 0. So an SAE
    that is saved soon has far more active features than it was trained with.

    Args:
        sae: in training, with all scaling folded into its weights.
        following: batches [B, d_in] that follow in the buffer, none of which it was trained on.
        count: how many of them serve.
        last: serves where none follow.
    """
    batches = _read(following, count) or ([] if last is None else [last])
    if not batches:
        return
    sae_in = sae.process_sae_in(torch.cat(batches).to(sae.device))
    hidden_pre = sae_in @ sae.W_enc + sae.b_enc
    if sae.cfg.rescale_acts_by_decoder_norm:
        hidden_pre = hidden_pre * sae.W_dec.norm(dim=-1)
    sae.topk_threshold.fill_(threshold_for_l0(hidden_pre, sae.cfg.k))


def _read(following: Iterator[Tensor], count: int) -> list[Tensor]:
    """So many batches, or as many as can be read: what fails here must not cost the training."""
    batches: list[Tensor] = []
    try:
        while len(batches) < count:
            batches.append(next(following))
    except StopIteration:
        pass
    except Exception as error:
        if isinstance(error, interruption()):
            raise
        logger.warning("the threshold is set on fewer tokens: no more can be read: %r", error)
    return batches
