"""The language model that SAEs are evaluated on."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.hub import why
from sae_plugins.eval_suites.inputs.cache import fingerprint

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from sae_plugins.eval_suites.inputs.subjects import Subject

DTYPES = ("float32", "bfloat16", "float16", "float64")
_NOT_THE_FUNCTION = ("device", "dtype", "model_name", "n_devices", "seed", "tokenizer_name")
"""Fields of a model's config that change where it runs, or name it; the weights tell the dtype."""


@dataclass(frozen=True)
class LanguageModel:
    """A language model in TransformerLens, with its weights as published."""

    name: str
    hooked: HookedTransformer
    hash: str
    """Of the weights, the vocabulary, and what the config says of the function; of no name."""
    dtype: str
    device: str


def load_language_model(name: str, device: str, dtype: str) -> LanguageModel:
    """The embedded world, or a model that TransformerLens knows, as SAEBench loads it.

    Args:
        name: `sae_plugins.world.NAME`, or TransformerLens' name of a model.
        device: where it runs.
        dtype: one of `DTYPES`.

    Raises:
        SuiteError: no such model, device or dtype, or it cannot be loaded.
    """
    import torch

    from sae_plugins import world

    if dtype not in DTYPES:
        raise SuiteError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SuiteError(f"device {device!r} cannot be used: {reason}; try cpu") from error
    if name == world.NAME:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for its 46 tensors
            hooked = world.load_hooked_transformer(device, dtype)
    else:
        hooked = _from_transformer_lens(name, device, getattr(torch, dtype))
    return LanguageModel(name, hooked, _hash(hooked), dtype, device)


def _from_transformer_lens(name: str, device: str, dtype: Any) -> HookedTransformer:
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import (
        NEED_REMOTE_CODE_MODELS,
        get_official_model_name,
    )

    from sae_plugins.runs.models import near_models

    try:
        official = get_official_model_name(name)
    except ValueError as error:
        raise SuiteError(
            f"no language model {name!r} is known to TransformerLens{near_models(name)}"
        ) from error
    if official.startswith(NEED_REMOTE_CODE_MODELS):
        raise SuiteError(
            f"language model {name} is not supported: TransformerLens would let its repository "
            "run code on this machine"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            hooked: HookedTransformer = HookedTransformer.from_pretrained_no_processing(
                name, device=device, dtype=dtype
            )
    except Exception as error:  # of the network, the Hub, the disk and the memory
        raise SuiteError(f"language model {name} cannot be loaded: {why(error)}") from error
    return hooked


def _hash(hooked: HookedTransformer) -> str:
    config = vars(hooked.cfg)
    function = {field: config[field] for field in config if field not in _NOT_THE_FUNCTION}
    tokenizer = hooked.tokenizer
    tokens = sorted(tokenizer.get_vocab().items()) if tokenizer is not None else None
    return fingerprint(function, dict(hooked.named_parameters()), tokens)


def check_hook(model: LanguageModel, hook_name: str) -> None:
    """Refuse a hook that the model does not have.

    Raises:
        SuiteError: it suggests near names.
    """
    if hook_name in model.hooked.hook_dict:
        return
    from sae_plugins.runs.models import near_hooks

    known = [name for name in model.hooked.hook_dict if name]
    raise SuiteError(f"{model.name} has no hook {hook_name!r}; {near_hooks(hook_name, known)}")


def check_context(model: LanguageModel, suite: str, settings: Any) -> None:
    """Refuse prompts that are longer than the model's.

    Raises:
        SuiteError: it names the setting and the model's limit.
    """
    limit = model.hooked.cfg.n_ctx
    for name in ("context_size", "context_length"):
        size = getattr(settings, name, 0)
        if size > limit:
            raise SuiteError(
                f"--{suite}.{name} {size} is too large: {model.name} reads {limit} tokens"
            )


def check_d_in(model: LanguageModel, subject: Subject) -> None:
    """Refuse an SAE for activations of another size than those at its hook, which must be there.

    Raises:
        SuiteError: it names both sizes.
    """
    from sae_plugins.runs.models import shape_at

    shape = shape_at(subject.hook_name, model.hooked, 1, {})[2:]
    size = shape.numel() if subject.hook_head_index is None else shape[-1]
    if size != subject.d_in:
        raise SuiteError(
            f"{subject.source} takes activations of d_in {subject.d_in}, and those of {model.name} "
            f"at {subject.hook_name} have {size}: it was trained on another model or hook"
        )
