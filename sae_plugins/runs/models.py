"""The language model of a run, and whether its settings suit it."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from sae_lens.load_model import load_model as load_with_sae_lens
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

from sae_plugins import world
from sae_plugins.base.errors import PluginError, did_you_mean
from sae_plugins.runs.setup import SAELensSettings

logger = logging.getLogger(__name__)


def load_model(settings: SAELensSettings) -> Any:
    """The language model.

    Raises:
        PluginError: it cannot be loaded; near names are suggested.
    """
    runner, name = settings.runner, settings.model_name
    device = runner.get("llm_device") or settings.device
    if name == world.NAME:
        return world.load_hooked_transformer(device)
    kind = runner.get("model_class_name", "HookedTransformer")
    arguments = runner.get("model_from_pretrained_kwargs")
    if arguments is None and kind == "HookedTransformer":
        arguments = {"center_writing_weights": False}  # SAELens' own default
    try:
        return load_with_sae_lens(kind, name, device, arguments, [runner["hook_name"]])
    except (
        Exception
    ) as error:  # whatever the loading libraries raise, the user must know which name
        if "hook_names not found" in str(error):
            raise PluginError(
                f"--hook_name {runner['hook_name']} is no module of {name}"
            ) from error
        reason = (
            near_models(name) or f" ({type(error).__name__}: {error}".splitlines()[0][:300] + ")"
        )
        raise PluginError(f"--model_name {name} cannot be loaded as a {kind}{reason}") from error


def model_facts(settings: SAELensSettings) -> list[Any]:
    """What the loaded model depends on."""
    names = ("model_class_name", "model_from_pretrained_kwargs", "hook_name", "llm_device")
    compiled = ("compile_llm", "llm_compilation_mode")
    of_runner = [settings.runner.get(name) for name in (*names, *compiled)]
    return [settings.model_name, settings.device, *of_runner]


def check_context_size(model: Any, settings: SAELensSettings) -> None:
    """Refuse prompts that are longer than the model's."""
    size = settings.runner.get("context_size", 128)
    limit = getattr(getattr(model, "cfg", None), "n_ctx", None)  # of TransformerLens models
    if limit is not None and size > limit:
        raise PluginError(
            f"--context_size {size} is too large: {settings.model_name} reads {limit} tokens"
        )


def check_positions(settings: SAELensSettings) -> None:
    """Refuse a slice of the prompts' positions that is none, or has nothing in it."""
    ends, size = (
        settings.runner.get("seqpos_slice", [None]),
        settings.runner.get("context_size", 128),
    )
    step = ends[2] if len(ends) == 3 else None
    well_formed = 1 <= len(ends) <= 3 and (step is None or step > 1)  # so SAELens wants it
    if not well_formed or not range(size)[slice(*ends)]:
        shown = " ".join("none" if end is None else str(end) for end in ends)
        raise PluginError(
            f"--seqpos_slice {shown} leaves none of the --context_size {size} positions, or is no "
            "slice: give START END, or START END STEP with a STEP of 2 or more; any may be none"
        )


def check_tokens(model: Any, settings: SAELensSettings) -> None:
    """Refuse tokens that the model does not have, and chats where it has no template for them."""
    size = getattr(getattr(model, "cfg", None), "d_vocab", None)  # of TransformerLens models
    for name in ("sequence_separator_token", "exclude_special_tokens"):
        given = settings.runner.get(name)
        tokens = given if isinstance(given, list) else [given]
        wrong = [t for t in tokens if type(t) is int and size is not None and not 0 <= t < size]
        if wrong and size is not None:
            raise PluginError(
                f"--{name} {wrong[0]}: the tokens of {settings.model_name} are 0 to {size - 1}"
            )
    template = getattr(getattr(model, "tokenizer", None), "chat_template", None)
    if settings.runner.get("use_chat_formatting") and not template:
        raise PluginError(
            f"--use_chat_formatting: the tokenizer of {settings.model_name} has no chat template; "
            "leave it out"
        )


def with_tokens_there(model: Any, settings: SAELensSettings) -> SAELensSettings:
    """The settings as they can be followed: without special tokens that the tokenizer lacks.

    SAELens leaves such tokens out and says in the SAE's config that they were there.

    Raises:
        PluginError: somebody has asked for one of them.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return settings
    lacking: dict[str, Any] = {}
    for name, default, without in (
        ("prepend_bos", True, False),
        ("sequence_separator_token", "bos", None),
    ):
        value = settings.runner.get(name, default)
        token = "bos" if value is True else value
        if (
            token not in ("bos", "eos", "sep")
            or getattr(tokenizer, f"{token}_token_id") is not None
        ):
            continue
        why = f"the tokenizer of {settings.model_name} has no {token.upper()} token"
        if name in settings.runner:
            shown = str(without).lower()
            raise PluginError(f"--{name} {str(value).lower()}: {why}; give --{name} {shown}")
        logger.warning("--%s: %s, so there is none in the text", name, why)
        lacking[name] = without
    return replace(settings, runner={**settings.runner, **lacking}) if lacking else settings


def near_models(name: str) -> str:
    """A suggestion, for a name that TransformerLens does not know."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    aliases = [alias for names in MODEL_ALIASES.values() for alias in names]
    known = [world.NAME, *OFFICIAL_MODEL_NAMES, *aliases]
    if name in known:
        return ""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return ": " + did_you_mean(name, near) if near else ""


def activation_size(model: Any, settings: SAELensSettings) -> int:
    """The d_in of a hook, from the model itself.

    Raises:
        PluginError: the model has no such hook, or it has no such head.
    """
    hook, head = settings.runner["hook_name"], settings.runner.get("hook_head_index")
    if hook not in model.hook_dict:
        suggestion = near_hooks(hook, [name for name in model.hook_dict if name])
        raise PluginError(
            f"--hook_name {hook!r}: {settings.model_name} has no such hook; {suggestion}"
        )
    kwargs = settings.runner.get("model_kwargs", {})
    shapes = [shape_at(hook, model, tokens, kwargs) for tokens in (1, 2)]
    if [shape[:2] for shape in shapes] != [(1, 1), (1, 2)] or shapes[0][2:] != shapes[1][2:]:
        raise PluginError(
            f"--hook_name {hook} of {settings.model_name} has no vector per token, but the shape "
            f"{tuple(shapes[1])} for a prompt of 2: choose another, such as a hook_resid_post"
        )
    shape = shapes[0][2:]
    if len(shape) == 1 and head is not None:
        raise PluginError(f"--hook_head_index {head}: {hook} has no heads; leave it out")
    if len(shape) == 2 and head is not None and not 0 <= head < shape[0]:
        raise PluginError(f"--hook_head_index {head}: {hook} has heads 0 to {shape[0] - 1}")
    return int(shape[-1] if head is not None else shape.numel())


@torch.no_grad()
def shape_at(hook: str, model: Any, tokens: int, kwargs: dict[str, Any]) -> torch.Size:
    """The shape of what a hook sees of one prompt of so many tokens, with SAELens' model_kwargs.

    Raises:
        PluginError: the model does not take `kwargs`.
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
    shape: torch.Size = cache[hook].shape
    return shape


def near_hooks(hook: str, known: Iterable[str]) -> str:
    """The nearest hooks; if none is near, all of them, with the layers as one."""
    suggestion = did_you_mean(hook, known)
    if not suggestion.startswith("known:"):
        return suggestion
    layers = [int(layer) for name in known for layer in re.findall(r"^blocks\.(\d+)\.", name)]
    names = sorted({re.sub(r"^blocks\.\d+\.", "blocks.N.", name) for name in known})
    return f"known: {', '.join(names)}" + (f", with N from 0 to {max(layers)}" if layers else "")
