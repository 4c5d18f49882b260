"""A language model that does not compute twice what no SAE changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.inputs.cache import Cache
from sae_plugins.eval_suites.inputs.subjects import layer_of
from sae_plugins.eval_suites.saebench.text import Text

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.models import LanguageModel

MEMORY = 2_000_000_000
"""Bytes of logits that are kept in memory for the next SAE; what does not fit is computed again."""


class SharedModel:
    """The forward passes that SAEBench asks a language model for, each computed once.

    Activations at the hook come from the cache, else from a pass that stops at the hook's layer.
    What goes on from there (logits with an SAE's reconstruction in place) starts at the next layer,
    where the hook is a residual stream's and the model a HookedTransformer; clean and zero-ablated
    logits are kept in memory. None of this moves a number: tests/eval_suites/saebench/
    test_shared_model.py compares them bit by bit.
    """

    def __init__(self, model: LanguageModel, hook_name: str, cache: Cache) -> None:
        self.hooked: Any = model.hooked
        names = ("forward", "run_with_hooks", "to_tokens")
        self._own = {name: getattr(self.hooked, name) for name in names}
        self.hook_name = hook_name
        self.layer = layer_of(hook_name)
        self.position: int | None = None
        """The one position of each prompt that is asked for, if it is only one."""
        self._identity = fingerprint(model.hash, model.dtype, hook_name)
        self._cache = cache
        self.texts: dict[Any, Text] = {}
        """Open text in tokens, by what it depends on besides its source."""
        self._tokens: dict[Any, Tensor] = {}
        self._logits: dict[str, Any] = {}
        self._room = MEMORY

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Have the model's own methods answer in this way, while open."""
        with (
            self.reading(),
            replaced(self.hooked, forward=self._forward, run_with_hooks=self._run_with_hooks),
        ):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The same, but for what somebody's hooks in the model may change."""
        with replaced(self.hooked, run_with_cache=self._run_with_cache, to_tokens=self._to_tokens):
            yield

    @torch.no_grad()
    def activations(self, tokens: Tensor) -> Tensor:
        """Activations [batch, positions, d_in] of tokens [batch, positions].

        With a `position` set, those of the other positions are copies of that one's.
        """

        def compute() -> tuple[dict[str, Tensor], dict[str, str]]:
            found: list[Tensor] = []
            self._with_own_forward(
                tokens,
                stop_at_layer=self.layer + 1,
                fwd_hooks=[(self.hook_name, lambda acts, hook: found.append(acts))],
            )
            acts = found[0] if self.position is None else found[0][:, self.position]
            return {"acts": acts}, {}

        key = fingerprint(self._identity, self.position, tokens)
        acts = self._cache.get("activations", key, compute)[0]["acts"].to(tokens.device)
        if self.position is None:
            return acts
        return acts[:, None].expand(-1, tokens.shape[1], *acts.shape[1:])

    def _run_with_cache(
        self, tokens_or_prompts: Any, *, names_filter: str | list[str], **_: Any
    ) -> tuple[None, dict[str, Tensor]]:
        assert names_filter in (self.hook_name, [self.hook_name]), names_filter
        tokens = tokens_or_prompts
        if not isinstance(tokens, Tensor):
            tokens = self.hooked.to_tokens(tokens)
        return None, {self.hook_name: self.activations(tokens)}

    def _to_tokens(self, text: str | list[str], **kwargs: Any) -> Tensor:
        key = (text if isinstance(text, str) else tuple(text), repr(kwargs))
        if key not in self._tokens:
            self._tokens[key] = self._own["to_tokens"](text, **kwargs)
        return self._tokens[key]

    def _forward(self, tokens: Tensor, **kwargs: Any) -> Any:
        return self._kept("clean", tokens, kwargs, lambda: self._from_hook(tokens, None, kwargs))

    def _run_with_hooks(
        self, tokens: Tensor, *, fwd_hooks: list[tuple[str, Callable[..., Any]]], **kwargs: Any
    ) -> Any:
        ((hook_name, function),) = fwd_hooks
        assert hook_name == self.hook_name, hook_name
        if not self._can_go_on():
            return self._with_own_forward(tokens, fwd_hooks=fwd_hooks, **kwargs)
        acts = self.activations(tokens)
        changed = function(acts.clone(), hook=self.hooked.hook_dict[hook_name])
        if not changed.any():  # ablated: the same for every SAE
            return self._kept(
                "zero", tokens, kwargs, lambda: self._from_hook(tokens, changed, kwargs)
            )
        return self._from_hook(tokens, changed, kwargs)

    def _can_go_on(self) -> bool:
        """Whether activations at the hook are all that the layers after it depend on."""
        padded_left = getattr(self.hooked.tokenizer, "padding_side", "right") == "left"
        can_start_there = isinstance(self.hooked, HookedTransformer)
        return can_start_there and self.hook_name.endswith("hook_resid_post") and not padded_left

    def _from_hook(self, tokens: Tensor, acts: Tensor | None, kwargs: dict[str, Any]) -> Any:
        """Go on from activations at the hook; from the model's own where there are none."""
        if not self._can_go_on():
            return self._own["forward"](tokens, **kwargs)
        acts = self.activations(tokens) if acts is None else acts
        return self._own["forward"](acts, start_at_layer=self.layer + 1, tokens=tokens, **kwargs)

    def _kept(
        self, what: str, tokens: Tensor, kwargs: dict[str, Any], compute: Callable[[], Any]
    ) -> Any:
        key = fingerprint(what, tokens, kwargs)
        if key not in self._logits:
            output = compute()
            size = sum(part.numel() * part.element_size() for part in output)
            if size > self._room:
                return output
            self._room -= size
            self._logits[key] = output
        return self._logits[key]

    def _with_own_forward(self, *args: Any, **kwargs: Any) -> Any:
        with replaced(self.hooked, forward=self._own["forward"]):
            return self._own["run_with_hooks"](*args, **kwargs)
