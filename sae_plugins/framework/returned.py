"""What plugins return from events, checked with messages that name the culprit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.text import in_words
from sae_plugins.framework.architectures import Architecture
from sae_plugins.framework.plugin import Plugin


def by_name(plugin: Plugin, event: str, returned: Any) -> Iterable[tuple[str, Any]]:
    """What an event returned by name: the items of a mapping, or nothing.

    Raises:
        PluginError: it is something else.
    """
    if returned is None:
        return ()
    if not isinstance(returned, Mapping):
        raise PluginError(
            f"plugin {plugin.name!r}: {event} must return values by name, as in "
            f'{{"name": value}}, or None, not {type(returned).__name__}'
        )
    return returned.items()


def check_loss(plugin: Plugin, term: str, value: Any) -> None:
    """Refuse a loss term that is no scalar tensor.

    Raises:
        PluginError: says what it is.
    """
    if not isinstance(value, Tensor) or value.ndim > 0:
        raise PluginError(
            f"plugin {plugin.name!r}: the loss term {term!r} must be a scalar tensor, "
            f"not {getattr(value, 'shape', type(value).__name__)}"
        )


def check_multiplier(
    plugin: Plugin,
    name: str,
    multiplier: Any,
    coefficients: Mapping[str, Any],
    row: Architecture,
    tokens: torch.Size | None,
) -> None:
    """Refuse a multiplier of a coefficient that an SAE of this architecture cannot be given.

    It may be one per token as long as `tokens` is given, the shape of the batch.

    Raises:
        PluginError: says why, and what to return.
    """
    what = "k" if name == "k" else f"the coefficient {name!r}"
    multiplies = f"plugin {plugin.name!r} multiplies {what}"
    if name not in coefficients:
        known = in_words(sorted(coefficients)) if coefficients else "none"
        if name == "k" and row.k_per is not None:
            raise PluginError(
                f"{multiplies} after the forward pass, which has chosen k features by then: return "
                "it from before_forward"
            )
        raise PluginError(
            f"{multiplies}, but {row.name} SAEs have {known}: choose another --architecture, or "
            "say in `unsupported` which ones the plugin is for"
        )
    if not isinstance(multiplier, (float, int, Tensor)):
        raise PluginError(f"{multiplies} by {multiplier!r}: return a number or a tensor")
    if not isinstance(multiplier, Tensor) or multiplier.ndim == 0:
        if name == "k" and not isfinite(multiplier):
            raise PluginError(f"{multiplies} by {float(multiplier)}")
        return
    if name == "k":
        raise PluginError(f"{multiplies} per token, and there is one for all: return a scalar")
    if tokens is None:
        raise PluginError(
            f"{multiplies} per token after the forward pass, when its loss is a mean over tokens "
            "already: return a scalar, or multiply in before_forward"
        )
    if not (row.weighs_tokens and name == row.sparsity_coefficient):
        raise PluginError(
            f"{multiplies} per token, but {row.name} SAEs apply it to the mean over tokens: return "
            "a scalar"
        )
    if multiplier.shape != tokens:
        raise PluginError(
            f"{multiplies} by a tensor of shape {tuple(multiplier.shape)}: return a scalar or one "
            f"number per token, {tuple(tokens)}"
        )
