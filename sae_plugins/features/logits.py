"""Which next tokens a feature promotes and suppresses by its direct path to the logits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BLOCK = 1 << 24
"""Logits that are computed at once."""
_RESIDUAL = r"hook_resid_(pre|mid|post)|hook_(attn|mlp)_out|hook_(in|out)"


@dataclass(frozen=True)
class Readout:
    """How a direction at a hook reaches the logits.

    Attributes:
        to_residual: [d_in, d_model], from the hook into the residual stream; None where it is in
            it already.
        scale: [d_model], of the final norm.
        is_centred: whether that norm takes the mean off, too.
        W_U: [d_model, vocabulary].
        path: all of it, in words.
    """

    to_residual: Tensor | None
    scale: Tensor
    is_centred: bool
    W_U: Tensor
    path: str

    def logits(self, directions: Tensor) -> Tensor:
        """What directions [n, d_in] add to the logits [n, vocabulary], whose mean is 0.

        The length of the residual stream, by which the final norm divides, is left out.
        """
        if self.to_residual is not None:
            directions = directions @ self.to_residual
        if self.is_centred:
            directions = directions - directions.mean(dim=1, keepdim=True)
        found = (directions * self.scale) @ self.W_U
        found -= found.mean(dim=1, keepdim=True)
        return found


@torch.no_grad()
def readout(
    hooked: Any, hook_name: str, d_in: int, words: int, head: int | None = None
) -> Readout | None:
    """The readout of a hook; None where its directions are none of the residual stream.

    Args:
        hooked: the language model.
        hook_name: where the SAE applies.
        d_in: of the SAE.
        words: how many tokens the tokenizer has; the model may have more, which mean nothing.
        head: of the hook, where the SAE is of one alone.
    """
    W_U = hooked.W_U.detach()[:, :words].float()
    to_residual, how = _to_residual(hooked, hook_name, head)
    if d_in != (W_U if to_residual is None else to_residual).shape[0] or how is None:
        return None
    scale, is_centred = _final_norm(hooked, len(W_U))
    is_plain = not is_centred and bool((scale == scale[0]).all())
    norm = "" if is_plain else " · scale of the final norm"
    centred = ", centred" if is_centred else ""
    return Readout(to_residual, scale, is_centred, W_U, f"W_dec{centred}{how}{norm} · W_U")


def _to_residual(hooked: Any, hook_name: str, head: int | None) -> tuple[Tensor | None, str | None]:
    """What leads from a hook into the residual stream, and its name."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if block is None:
        return None, None
    number, place = int(block[1]), block[2]
    if re.fullmatch(_RESIDUAL, place):
        return None, ""
    if place == "attn.hook_z":
        W_O = hooked.W_O[number].detach().float()
        if head is not None:
            return W_O[head], f" · W_O of head {head}"
        return W_O.flatten(0, 1), " · W_O"
    if place == "mlp.hook_post":
        return hooked.W_out[number].detach().float(), " · W_out"
    return None, None


def _final_norm(hooked: Any, d_model: int) -> tuple[Tensor, bool]:
    """By what the final norm multiplies each dimension, and whether it takes the mean off.

    The norm itself is asked, since architectures keep its weight in different forms.
    """
    device, dtype = hooked.W_U.device, hooked.W_U.dtype
    norm = getattr(hooked, "ln_final", None)
    if norm is None:
        return torch.ones(d_model, device=device), False
    signs = torch.ones(1, 1, d_model, device=device, dtype=dtype)
    signs[..., 1::2] = -1  # of mean 0 where d_model is even, and of length 1 per dimension
    scale = ((norm(signs) - norm(-signs)) / (2 * signs))[0, 0].float()
    moved = norm(signs + 1) - norm(-signs)
    unmoved = norm(signs) - norm(-signs)
    return scale, bool(torch.allclose(moved, unmoved, atol=1e-2, rtol=1e-2))


@torch.no_grad()
def promoted(readout: Readout, W_dec: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tokens whose logits each feature raises most, and those that it lowers most.

    Returns:
        Tokens and logits [d_sae, most] of the promoted ones, then those of the suppressed ones.
    """
    rows = W_dec.detach().float().to(readout.W_U.device)
    most = min(most, readout.W_U.shape[1])
    # made beforehand: small results between large ones would leave holes in memory, too small
    # for the next large one
    tokens = torch.empty((2, len(rows), most), dtype=torch.long)
    values = torch.empty((2, len(rows), most))
    step = max(1, _BLOCK // readout.W_U.shape[1])
    for first in range(0, len(rows), step):
        logits = readout.logits(rows[first : first + step])
        for side in (0, 1):
            found = logits.topk(most, dim=1, largest=side == 0)
            tokens[side, first : first + step] = found.indices.cpu()
            values[side, first : first + step] = found.values.cpu()
    return tokens[0], values[0], tokens[1], values[1]


@torch.no_grad()
def histogram(readout: Readout, row: Tensor, bars: int = 50) -> tuple[list[float], list[float]]:
    """How many tokens get which logit from one decoder row [d_in]: counts, and where bars are."""
    logits = readout.logits(row[None].to(readout.W_U.device))[0].cpu()
    low, high = float(logits.min()), float(logits.max())
    width = (high - low) / bars
    counts: list[float] = torch.histc(logits, bars, low, high).tolist()
    return counts, [low + (i + 0.5) * width for i in range(bars)]
