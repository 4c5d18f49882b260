"""The hooks of a language model: their names, and what they see."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

from sae_plugins.base.errors import PluginError, did_you_mean


def as_transformer_lens(hook: str) -> str:
    """TransformerLens' name of what a layer of a Hugging Face model gives; others stay as they are.

    The output of a decoder's layer is the residual stream after it, in every architecture.
    """
    layer = re.fullmatch(r"(?:\w+\.)*(?:layers|h|block)\.(\d+)", hook)
    return f"blocks.{layer[1]}.hook_resid_post" if layer else hook


@torch.no_grad()
def shape_at(hook: str, model: Any, tokens: int, kwargs: dict[str, Any]) -> torch.Size:
    """The shape of what a hook sees of one prompt of so many tokens, with SAELens' model_kwargs.

    Raises:
        PluginError: the model does not take `kwargs`, or the hook sees no tensor.
    """
    device = next(model.parameters()).device
    try:
        cache = model.run_with_cache(
            torch.zeros((1, tokens), dtype=torch.long, device=device),
            names_filter=[hook],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook),
            prepend_bos=False,
            **kwargs,
        )[1]
    except TypeError as error:
        if not kwargs:
            raise
        raise PluginError(f"--model_kwargs {kwargs} do not suit the model: {error}") from error
    if hook not in cache:
        raise PluginError(
            f"--hook_name {hook} gives no tensor: choose a module that does, such as a layer"
        )
    shape: torch.Size = cache[hook].shape
    return shape


def near_hooks(hook: str, known: Iterable[str]) -> str:
    """The nearest hooks; if none is near, all of them, with the layers as one."""
    known = list(known)
    suggestion = did_you_mean(hook, known)
    if not suggestion.startswith("known:"):
        return suggestion
    number = re.compile(r"\.(\d+)(?=\.|$)")
    layers = [int(layer) for name in known for layer in number.findall(name)]
    names = sorted({number.sub(".N", name) for name in known})
    return f"known: {', '.join(names)}" + (f", with N from 0 to {max(layers)}" if layers else "")
