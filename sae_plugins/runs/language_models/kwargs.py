"""Which keyword arguments of `from_pretrained` a run may give; no slow imports.

What is not in the table is refused: there are arguments, and values of harmless ones, with which
transformers runs code that comes with a model, or downloads kernels from the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sae_plugins.base.errors import PluginError, did_you_mean

HOOKED, BRIDGE, PROXY, MAMBA = CLASSES = (
    "HookedTransformer", "TransformerBridge", "AutoModelForCausalLM", "HookedMamba",
)  # fmt: skip
"""How a language model can be loaded."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
_CODE = ("trust_remote_code", "use_kernels", "kernel_config", "custom_generate", "code_revision")


def _is(*kinds: type) -> Callable[[Any], bool]:
    """An exact type, so that true is no number."""
    return lambda value: type(value) in kinds


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _places(value: Any) -> bool:
    """A `device_map`: devices, or a word for how to spread the model over them."""
    values = value.values() if isinstance(value, Mapping) else [value]
    return all(type(v) is int or (isinstance(v, str) and "/" not in v) for v in values)


_Table = dict[str, tuple[str, Callable[[Any], bool]]]

_FILES: _Table = {
    "revision": ("a branch, tag or commit", _is(str)),
    "cache_dir": ("a folder", _is(str)),
    "local_files_only": ("true or false", _is(bool)),
    "force_download": ("true or false", _is(bool)),
}
"""Which files, and where they are kept."""
_DTYPE: _Table = {name: (", ".join(DTYPES), _one_of(*DTYPES)) for name in ("dtype", "torch_dtype")}
_PROCESSING: _Table = {
    **{
        name: ("true or false", _is(bool))
        for name in (
            *("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"),
            *("refactor_factored_attn_matrices", "default_prepend_bos"),
        )
    },
    **{
        name: ("a whole number", _is(int))
        for name in (
            *("n_devices", "n_ctx", "first_n_layers"),
            *("checkpoint_index", "checkpoint_value", "checkpoint_label"),
        )
    },
    "default_padding_side": ("left or right", _one_of("left", "right")),
}
"""TransformerLens' own."""
_HUGGING_FACE: _Table = {
    **_FILES,
    **_DTYPE,
    "subfolder": ("a folder in the repository", _is(str)),
    "variant": ("a word", _is(str)),
    "use_safetensors": ("true or false", _is(bool)),
    "low_cpu_mem_usage": ("true or false", _is(bool)),
    "device_map": ("a device, auto, or devices by module", _places),
    "attn_implementation": (
        "eager, sdpa, flash_attention_2, flash_attention_3, flex_attention",
        _one_of("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
    ),
}
_ALLOWED: dict[str, _Table] = {
    "HookedTransformer": {**_FILES, **_DTYPE, **_PROCESSING},
    "TransformerBridge": {**_FILES, **_DTYPE},
    "AutoModelForCausalLM": _HUGGING_FACE,
    "HookedMamba": {},
}
PROCESSING = tuple(_PROCESSING)
FILES = tuple(_FILES)


def check_kwargs(kwargs: Mapping[str, Any] | None, model_class: str) -> None:
    """Refuse arguments of `from_pretrained` that could run somebody's code, or that none takes.

    Raises:
        PluginError: names the argument, and what may be given.
    """
    allowed = _ALLOWED[model_class]
    for name, value in (kwargs or {}).items():
        if name in _CODE:
            raise PluginError(
                f"{name} is not available: sae-plugins never runs code that comes with a model"
            )
        if name == "token":
            raise PluginError("token would be saved with the run: `hf auth login`, or set HF_TOKEN")
        if name not in allowed:
            known = did_you_mean(name, allowed) if allowed else "it takes none"
            raise PluginError(f"{name!r} is not among those that {model_class} may get; {known}")
        words, fits = allowed[name]
        if value is not None and not fits(value):
            raise PluginError(f"{name} cannot be {value!r}: {words}")
