"""The language model that SAEs are evaluated on: what its config says, and the model itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import PluginError, SuiteError
from sae_plugins.base.fingerprints import fingerprint

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.subjects import Subject
    from sae_plugins.runs.language_models.loader import Loader, Looks

DTYPES = ("float32", "bfloat16", "float16", "float64")
CLASSES = ("HookedTransformer", "TransformerBridge")
"""Ways to load a model that suites can work with, by name."""
_NOT_THE_FUNCTION = ("device", "dtype", "model_name", "n_devices", "seed", "tokenizer_name")
"""Fields of a model's config that change where it runs, or name it; the weights tell the dtype."""


@dataclass(frozen=True)
class LanguageModel:
    """A language model with TransformerLens' hooks, and with its weights as published."""

    name: str
    hooked: Any
    """A HookedTransformer or a TransformerBridge."""
    hash: str
    """Of the weights, the vocabulary, and what the config says of the function; of no name."""
    dtype: str
    device: str
    label: str
    """The name as a part of a path."""
    loaded_as: str
    """By whose code, in words."""


@dataclass(frozen=True)
class Expected:
    """A language model before it is loaded: all that its config says of it."""

    loader: Loader
    looks: Looks
    dtype: str
    shapes: dict[str, Any] = field(default_factory=dict)
    """Those of one activation by hook, as far as anybody has asked."""

    def check(self, subject: Subject, flag: str, prompt: int | None) -> None:
        """Refuse an SAE of another model or hook, and prompts that are longer than the model's.

        Args:
            subject: the SAE.
            flag: the one that says how long prompts are.
            prompt: so many tokens, if there is a flag.

        Raises:
            SuiteError: it says what does not fit.
        """
        check_hook(self, subject.hook_name)
        check_d_in(self, subject)
        limit = self.looks.context
        if prompt is not None and limit is not None and prompt > limit:
            raise SuiteError(
                f"{flag} {prompt} is too large: {self.loader.name} reads {limit} tokens"
            )

    def load(self, device: str) -> LanguageModel:
        """The model, where it shall run.

        Raises:
            SuiteError: there is no such device, or it cannot be loaded.
        """
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise SuiteError(f"device {device!r} cannot be used: {reason}; try cpu") from error
        try:
            hooked = self.loader.load(device, getattr(torch, self.dtype))
        except PluginError as error:
            raise SuiteError(f"language model {error}") from error
        return LanguageModel(
            self.loader.name, hooked, _hash(hooked), self.dtype, device, self.loader.label,
            self.loader.kind,
        )  # fmt: skip


def expected(name: str, dtype: str, model_class: str | None = None) -> Expected:
    """What the config of a language model says.

    Args:
        name: `sae_plugins.world.NAME`, a model that TransformerLens lists, which is loaded as
            SAEBench does, another of the Hub, or a folder with one.
        dtype: one of `DTYPES`.
        model_class: one of `CLASSES`, to load it so.

    Raises:
        SuiteError: no such model or dtype, or one that the suites cannot work with.
    """
    from sae_plugins.runs.language_models.choice import loader_of

    if dtype not in DTYPES:
        raise SuiteError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    try:
        loader = loader_of(name, model_class or CLASSES[0])
        return Expected(loader, loader.looks(), dtype)
    except PluginError as error:
        raise SuiteError(f"language model {error}") from error


def load_language_model(name: str, device: str, dtype: str) -> LanguageModel:
    """A language model at once; see `expected` and `Expected.load`."""
    return expected(name, dtype).load(device)


def _hash(hooked: Any) -> str:
    config = vars(hooked.cfg)
    function = {field: config[field] for field in config if field not in _NOT_THE_FUNCTION}
    tokenizer = hooked.tokenizer
    tokens = sorted(tokenizer.get_vocab().items()) if tokenizer is not None else None
    return fingerprint(function, dict(hooked.named_parameters()), tokens)


def check_hook(model: Expected, hook_name: str) -> None:
    """Refuse a hook that the model does not have.

    Raises:
        SuiteError: it suggests near names.
    """
    from sae_plugins.runs.language_models.hooks import near_hooks

    hooks = model.looks.hooks
    if hook_name not in hooks:
        near = near_hooks(hook_name, hooks)
        raise SuiteError(f"{model.loader.name} has no hook {hook_name!r}; {near}")


def check_d_in(model: Expected, subject: Subject) -> None:
    """Refuse an SAE for activations of another size than those at its hook, which must be there.

    Raises:
        SuiteError: it names both sizes.
    """
    from sae_plugins.runs.language_models.hooks import shape_at

    hook = subject.hook_name
    if hook not in model.shapes:
        model.shapes[hook] = shape_at(hook, model.looks.model, 1, {})[2:]
    shape = model.shapes[hook]
    size = shape.numel() if subject.hook_head_index is None else shape[-1]
    if size != subject.d_in:
        raise SuiteError(
            f"{subject.source} takes activations of d_in {subject.d_in}, and those of "
            f"{model.loader.name} at {hook} have {size}: it was trained on another "
            "model or hook"
        )
