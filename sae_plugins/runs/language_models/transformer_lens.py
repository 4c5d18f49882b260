"""Language models that TransformerLens and SAELens load by themselves, and the embedded one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import torch

from sae_plugins import world
from sae_plugins.runs.language_models.kwargs import HOOKED, MAMBA
from sae_plugins.runs.language_models.loader import Loader, Looks

_OF_WEIGHTS = (
    *("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"),
    *("refactor_factored_attn_matrices", "default_padding_side", "checkpoint_label"),
)
"""Arguments that TransformerLens needs when it has the weights, and not for a config."""


class Embedded(Loader):
    """The world's language model, which is small."""

    model_class, kind = HOOKED, "the embedded world"
    _loaded: Any = None

    def _looks(self) -> Looks:
        model = self._loaded = world.load_hooked_transformer()
        return Looks(model, model.cfg.n_ctx, model.cfg.d_vocab)

    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any:
        found, self._loaded = self._loaded, None
        name = str(dtype or torch.float32).removeprefix("torch.")
        if found is not None and (device, name) == ("cpu", "float32"):
            return found  # it is small, and need not be read again
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for its 46 tensors
            return world.load_hooked_transformer(device, name)


class Listed(Loader):
    """A model that TransformerLens knows by name."""

    model_class, kind = HOOKED, "HookedTransformer, as TransformerLens lists it"

    def __init__(self, name: str, kwargs: Mapping[str, Any], official: str) -> None:
        super().__init__(name, kwargs)
        self.official = official

    def _looks(self) -> Looks:
        from transformer_lens.loading_from_pretrained import get_pretrained_model_config

        kwargs = {key: value for key, value in self.kwargs.items() if key not in _OF_WEIGHTS}
        kwargs |= {"n_devices": 1, "device": "meta", "trust_remote_code": False}
        return hooked_looks(get_pretrained_model_config(self.official, **kwargs))

    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any:
        from sae_lens import HookedSAETransformer

        kwargs = self.kwargs if dtype is None else {**self.kwargs, "dtype": dtype}
        if kwargs.get("n_devices", 1) > 1:
            device = "cuda"  # as SAELens has it
        return HookedSAETransformer.from_pretrained_no_processing(
            self.name, device=device, trust_remote_code=False, **kwargs
        )


def hooked_looks(cfg: Any) -> Looks:
    """What a HookedTransformer of this config looks like."""
    from sae_lens import HookedSAETransformer

    cfg.tokenizer_name = None  # which may have to be downloaded
    with torch.device("meta"):
        model = HookedSAETransformer(cfg, move_to_device=False)
    return Looks(model, cfg.n_ctx, cfg.d_vocab)


class Mamba(Loader):
    """SAELens' way alone: its config says nothing that others understand."""

    model_class = kind = MAMBA
    _loaded: Any = None

    def _looks(self) -> Looks:
        model = self._loaded = self._load("cpu", None, None)
        return Looks(model, None, getattr(model.cfg, "d_vocab", None))

    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any:
        from sae_lens.load_model import load_model

        if self._loaded is None:
            return load_model(MAMBA, self.name, device, self.kwargs)
        return self._loaded.to(device)
