"""Language models that transformers loads, from a folder or from the Hub, and what makes hooks."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae_plugins.base.errors import PluginError
from sae_plugins.base.patches import replaced
from sae_plugins.runs.language_models.kwargs import BRIDGE, FILES, HOOKED, PROCESSING, PROXY
from sae_plugins.runs.language_models.loader import Loader, Looks, is_folder
from sae_plugins.runs.language_models.transformer_lens import hooked_looks

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
"""Where configs of Hugging Face have the longest prompt."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
               "vocab.txt", "spiece.model", "tekken.json")  # fmt: skip
_UNNAMED = "model-without-a-name"
"""TransformerLens guesses the architecture from a name; this one says nothing."""
_FAR = 0.02
"""How far a conversion may be from the model itself, as a share, in 32 bits or more."""


class HuggingFace(Loader):
    """A model that transformers loads, from a folder or from the Hub."""

    @property
    def _files(self) -> dict[str, Any]:
        names = (*FILES, "subfolder")
        return {key: value for key, value in self.kwargs.items() if key in names}

    @property
    def config(self) -> Any:
        """Its config, as transformers has it."""
        with self._explained():
            file = Path(self.name) / self._files.get("subfolder", "") / "config.json"
            written = file.stat().st_mtime_ns if file.is_file() else 0
            return _config(self.name, tuple(sorted(self._files.items())), written)

    @property
    def dtype(self) -> str | None:
        """That of its config."""
        found = getattr(self.config, "dtype", None)
        return None if found is None else str(found).removeprefix("torch.")

    @property
    def context(self) -> int | None:
        """The longest prompt that it is made for."""
        config = self.config.get_text_config()
        found = (getattr(config, name, None) for name in _POSITIONS)
        return next((int(value) for value in found if isinstance(value, int)), None)

    @property
    def vocabulary(self) -> int:
        """How many tokens it has."""
        return int(self.config.get_text_config().vocab_size)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; None for a folder without one."""
        from transformers import AutoTokenizer

        folder = Path(self.name)
        if is_folder(self.name) and not any((folder / file).is_file() for file in _TOKENIZERS):
            return None
        return AutoTokenizer.from_pretrained(self.name, trust_remote_code=False, **self._files)

    def hugging_face(self, device: str, dtype: torch.dtype | None, **more: Any) -> Any:
        """The model itself, ready to be run."""
        from transformers import AutoModelForCausalLM

        kwargs = {key: value for key, value in self.kwargs.items() if key not in PROCESSING}
        if dtype is not None:
            kwargs["dtype"] = dtype
        kwargs |= more
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.name, trust_remote_code=False, **kwargs
        )
        if kwargs.get("device_map") is None:
            model = model.to(device)
        return model.eval().requires_grad_(False)

    def without_hooks(self, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
        """The model itself, with the attention that its numbers are defined by, and its tokenizer.

        Raises:
            PluginError: one of them cannot be loaded.
        """
        with self._explained():
            model = self.hugging_face(device, dtype, attn_implementation="eager")
            return model, _needed(self)

    def _empty(self) -> Any:
        """The model without numbers."""
        from transformers import AutoModelForCausalLM

        make: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            return make(copy.deepcopy(self.config), trust_remote_code=False).eval()


@functools.lru_cache(maxsize=16)
def _config(name: str, files: tuple[tuple[str, Any], ...], written: int) -> Any:
    from transformers import AutoConfig

    folder = Path(name)
    inside = folder / dict(files).get("subfolder", "")
    if folder.is_dir() and not (inside / "config.json").is_file():
        raise PluginError(
            f"{name} is a folder without a config.json: name one that save_pretrained has written"
        )
    if name.startswith(("/", "./", "../")) and not folder.exists():
        raise PluginError(f"there is no folder {name} with a language model")
    config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, **dict(files))
    return config


class Converted(HuggingFace):
    """A HookedTransformer that TransformerLens makes of a model that it does not list."""

    model_class, kind = HOOKED, "HookedTransformer, converted by TransformerLens"

    def config_of_transformer_lens(self) -> Any:
        """The config that TransformerLens makes of it; None if it knows no such architecture."""
        from transformer_lens.loading_from_pretrained import get_pretrained_model_config

        with self._explained(), self._unlisted():
            try:
                cfg = get_pretrained_model_config(
                    _UNNAMED, hf_cfg=self.config.to_dict(), device="meta"
                )
            except NotImplementedError:
                return None
            cfg.n_ctx = self.kwargs.get("n_ctx", cfg.n_ctx)
            cfg.n_layers = self.kwargs.get("first_n_layers", cfg.n_layers)
            return cfg

    def _looks(self) -> Looks:
        _needed(self)
        return hooked_looks(self.config_of_transformer_lens())

    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any:
        from sae_lens import HookedSAETransformer

        dtype = dtype or self.kwargs.get("dtype", torch.float32)
        model = self.hugging_face(device, dtype)
        kwargs = {key: value for key, value in self.kwargs.items() if key in PROCESSING}
        with self._unlisted():
            hooked: Any = HookedSAETransformer.from_pretrained_no_processing(
                _UNNAMED, hf_model=model, tokenizer=_needed(self), device=device, dtype=dtype,
                **kwargs,
            )  # fmt: skip
        hooked.cfg.model_name = self.label
        hooked.cfg.tokenizer_name = self.name
        if not {"first_n_layers", "center_unembed"} & kwargs.keys():  # other logits are wanted
            _compare(self.name, hooked, model)
        return hooked.eval()

    @contextlib.contextmanager
    def _unlisted(self) -> Iterator[None]:
        """Have TransformerLens take this model's config for that of a name that it lists."""
        from transformer_lens import loading_from_pretrained

        config = self.config

        class Given:
            @staticmethod
            def from_pretrained(*_: Any, **__: Any) -> Any:
                return config

        with replaced(
            loading_from_pretrained, AutoConfig=Given, get_official_model_name=lambda name: name
        ):
            yield


@torch.no_grad()
def _compare(name: str, hooked: Any, model: Any) -> None:
    """Refuse a conversion that computes something else than the model itself."""
    size = min(64, hooked.cfg.n_ctx)
    tokens = torch.arange(size, device=model.device)[None] % hooked.cfg.d_vocab
    found, expected = (
        logits.float().log_softmax(-1) for logits in (hooked(tokens), model(tokens).logits)
    )
    off = float((found - expected.to(found.device)).norm() / expected.norm())
    bound = _FAR if model.dtype.itemsize >= 4 else 10 * _FAR
    if not off <= bound:
        raise PluginError(
            f"{name} cannot be loaded as a {HOOKED}: what TransformerLens makes of it predicts "
            f"other tokens than the model itself (they are {off:.0%} apart); use "
            f"--model_class_name {BRIDGE}"
        )


def _needed(loader: HuggingFace) -> Any:
    """The tokenizer of a model that must have one."""
    if loader.tokenizer is None:
        raise PluginError(
            f"{loader.name} has no tokenizer: save the model's there with its save_pretrained"
        )
    return loader.tokenizer


class Bridge(HuggingFace):
    """TransformerLens' hooks around transformers' own model."""

    model_class = kind = BRIDGE

    def _looks(self) -> Looks:
        return Looks(self._bridge(self._empty(), "meta"), self.context, self.vocabulary)

    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any:
        dtype = dtype or self.kwargs.get("dtype", torch.float32)
        # the only one that shows what its hooks see
        model = self.hugging_face(device, dtype, attn_implementation="eager")
        return self._bridge(model, device, dtype).eval()

    def _bridge(self, model: Any, device: str, dtype: torch.dtype = torch.float32) -> Any:
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

        from sae_plugins.runs.language_models.bridge import SAEBridge

        architecture = type(model).__name__
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise PluginError(
                f"{self.name} cannot be loaded as a {HOOKED}: TransformerLens knows no "
                f"{architecture}; add --model_class_name {PROXY} and a --hook_name of its modules, "
                "such as model.layers.6"
            )
        bridge: Any = SAEBridge.boot_transformers(
            self.name, hf_model=model, tokenizer=_needed(self), device=device, dtype=dtype
        )
        bridge.cfg.model_name = self.label
        return bridge


class Proxy(HuggingFace):
    """SAELens' hooks around transformers' own model: the outputs of its modules."""

    model_class = PROXY
    kind = "AutoModelForCausalLM, with SAELens' proxy"

    def _looks(self) -> Looks:
        return Looks(self._proxy(self._empty()), self.context, self.vocabulary)

    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any:
        hooks = None if hook_name is None else [hook_name]  # each breaks a compiled graph
        return self._proxy(self.hugging_face(device, dtype), hooks)

    def _proxy(self, model: Any, hooks: list[str] | None = None) -> Any:
        from sae_lens.load_model import HookedProxyLM

        return HookedProxyLM(model, self.tokenizer, hooks)
