"""The language model of a run, and whether its settings suit it, as far as its config says."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from sae_plugins.base.errors import PluginError, prefixed
from sae_plugins.runs.language_models.choice import loader_of
from sae_plugins.runs.language_models.hooks import as_transformer_lens, near_hooks, shape_at
from sae_plugins.runs.language_models.kwargs import HOOKED, PROXY
from sae_plugins.runs.language_models.loader import Loader, Looks
from sae_plugins.runs.setup import SAELensSettings

logger = logging.getLogger(__name__)


def model_loader(settings: SAELensSettings) -> Loader:
    """How the run's language model is loaded.

    Raises:
        PluginError: it cannot be.
    """
    runner = settings.runner
    arguments = dict(runner.get("model_from_pretrained_kwargs") or {})
    if runner.get("model_revision"):
        arguments["revision"] = runner["model_revision"]
    with prefixed("--model_name"):
        return loader_of(
            settings.model_name, runner.get("model_class_name") or HOOKED, arguments or None
        )


def model_looks(loader: Loader) -> Looks:
    """What the run's language model looks like.

    Raises:
        PluginError: it cannot be loaded.
    """
    with prefixed("--model_name"):
        return loader.looks()


def load_model(loader: Loader, looks: Looks, settings: SAELensSettings) -> Any:
    """The language model with its numbers, where the run wants it.

    Raises:
        PluginError: it cannot be loaded.
    """
    device = settings.runner.get("llm_device") or settings.device
    with prefixed("--model_name"):
        model = loader.load(device, hook_name=settings.runner["hook_name"])
    if looks.vocabulary is not None and not settings.runner.get("compile_llm"):
        refuse_unknown_tokens(model, looks.vocabulary, loader.name)
    return model


def refuse_unknown_tokens(model: Any, vocabulary: int, name: str) -> None:
    """Have a model say so when it is given tokens that it does not have."""

    def check(_: Any, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0] if inputs else None
        if isinstance(tokens, torch.Tensor) and not tokens.is_floating_point() and tokens.numel():
            # a GPU is waited for once
            lowest, highest = torch.stack(tokens.aminmax()).tolist()
            check_range(lowest, highest, vocabulary, name)

    model.register_forward_pre_hook(check)


def check_range(lowest: int, highest: int, vocabulary: int, name: str) -> None:
    """Refuse tokens of which one is none of the model's.

    Raises:
        PluginError: it names the token.
    """
    if lowest < 0 or highest >= vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise PluginError(
            f"the text has the token {wrong}, and those of {name} are 0 to {vocabulary - 1}: it is "
            "in the tokens of another model, so give text, or text in this model's tokens"
        )


def model_facts(settings: SAELensSettings) -> list[Any]:
    """What the loaded model depends on."""
    names = ("model_class_name", "model_from_pretrained_kwargs", "hook_name", "llm_device")
    others = ("compile_llm", "llm_compilation_mode", "model_revision")
    of_runner = [settings.runner.get(name) for name in (*names, *others)]
    return [settings.model_name, settings.device, *of_runner]


def check_context_size(looks: Looks, settings: SAELensSettings) -> None:
    """Refuse prompts that are longer than the model's."""
    size = settings.runner.get("context_size", 128)
    if looks.context is not None and size > looks.context:
        raise PluginError(
            f"--context_size {size} is too large: {settings.model_name} reads {looks.context} "
            "tokens"
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


def check_tokens(looks: Looks, settings: SAELensSettings) -> None:
    """Refuse tokens that the model does not have."""
    size = looks.vocabulary
    for name in ("sequence_separator_token", "exclude_special_tokens"):
        given = settings.runner.get(name)
        tokens = given if isinstance(given, list) else [given]
        wrong = [t for t in tokens if type(t) is int and size is not None and not 0 <= t < size]
        if wrong and size is not None:
            raise PluginError(
                f"--{name} {wrong[0]}: the tokens of {settings.model_name} are 0 to {size - 1}"
            )


def check_chat(model: Any, settings: SAELensSettings) -> None:
    """Refuse chats where the model has no template for them."""
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


def activation_size(looks: Looks, settings: SAELensSettings) -> int:
    """The d_in of a hook, from the model's config.

    Raises:
        PluginError: the model has no such hook, or it has no such head.
    """
    hook, head = settings.runner["hook_name"], settings.runner.get("hook_head_index")
    check_hook(hook, looks, settings.model_name, "--hook_name ")
    kwargs = settings.runner.get("model_kwargs", {})
    shapes = [shape_at(hook, looks.model, tokens, kwargs) for tokens in (1, 2)]
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


def check_hook(hook: str, looks: Looks, model_name: str, flag: str = "") -> None:
    """Refuse a hook that a model does not have.

    Raises:
        PluginError: it suggests near names, or the names of that way to load the model.
    """
    if hook in looks.hooks:
        return
    as_hooked = as_transformer_lens(hook)
    if as_hooked in looks.hooks:
        cure = f"it is called {as_hooked!r} here, or add --model_class_name {PROXY}"
    else:
        cure = near_hooks(hook, looks.hooks)
    raise PluginError(f"{flag}{hook!r}: {model_name} has no such hook; {cure}")
