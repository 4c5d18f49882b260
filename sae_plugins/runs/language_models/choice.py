"""Which way a language model is loaded; see the room's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.runs.language_models.hugging_face import Bridge, Converted, Proxy
from sae_plugins.runs.language_models.kwargs import BRIDGE, HOOKED, MAMBA, PROXY, check_kwargs
from sae_plugins.runs.language_models.loader import Loader, is_folder, near_models

if TYPE_CHECKING:
    import torch
from sae_plugins.runs.language_models.transformer_lens import Embedded, Listed, Mamba


def loader_of(
    name: str, model_class: str = HOOKED, kwargs: Mapping[str, Any] | None = None
) -> Loader:
    """The way to load a language model.

    Args:
        name: `sae_plugins.world.NAME`, TransformerLens' name of a model, one of the Hugging Face
            Hub, or a folder that `save_pretrained` has written.
        model_class: one of `kwargs.CLASSES`.
        kwargs: of `from_pretrained`.

    Raises:
        PluginError: there is no such model, or it cannot be loaded without its own code.
    """
    kwargs = kwargs or {}
    if name.startswith("~"):  # an uploaded config names no home folder
        name = str(Path(name).expanduser())
    if name == world.NAME:
        changed = any(value is True or value not in (None, False, 1) for value in kwargs.values())
        if model_class != HOOKED or changed:
            raise PluginError(f"{name} is a {HOOKED}, and takes no arguments of from_pretrained")
        return Embedded(name, {})
    check_kwargs(kwargs, model_class)
    if model_class in (MAMBA, BRIDGE, PROXY):
        ways: dict[str, type[Mamba] | type[Bridge] | type[Proxy]]
        ways = {MAMBA: Mamba, BRIDGE: Bridge, PROXY: Proxy}
        return ways[model_class](name, kwargs)
    official = _official_name(name)
    if official is not None:
        return Listed(name, kwargs, official)
    if "/" not in name and (near := near_models(name)):
        raise PluginError(f"{name} cannot be loaded as a {HOOKED}: {near}")
    converted = Converted(name, kwargs)
    return converted if converted.config_of_transformer_lens() else Bridge(name, kwargs)


def transformers_model(name: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Transformers' own model of a name that `loader_of` takes, without hooks, and its tokenizer.

    Raises:
        PluginError: it cannot be loaded.
    """
    if name == world.NAME:
        return world.load_hf_model().to(device, dtype), world.load_tokenizer()
    return Proxy(_official_name(name) or name, {}).without_hooks(device, dtype)


def _official_name(name: str) -> str | None:
    """TransformerLens' name of a model that it lists and can load without code of others."""
    from transformer_lens.loading_from_pretrained import (
        NEED_REMOTE_CODE_MODELS,
        get_official_model_name,
    )

    try:
        official = get_official_model_name(name)
    except ValueError:
        return None
    if official.startswith(NEED_REMOTE_CODE_MODELS):
        raise PluginError(
            f"{name} cannot be loaded as a {HOOKED}: TransformerLens would let its repository run "
            f"code on this machine; --model_class_name {BRIDGE} reads it by transformers' own code"
        )
    if is_folder(official):
        raise PluginError(
            f"{name}: TransformerLens would read the folder of that name in the working directory; "
            f"start from another, or name the folder {Path(official).absolute()}"
        )
    return official
