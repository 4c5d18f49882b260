"""Activation stores over small texts, whose language model looks embeddings up."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import torch
from sae_lens.training.activations_store import ActivationsStore

VOCABULARY, D_IN = 500, 3
HOOKS = {"blocks.0.hook_a": 3, "blocks.1.hook_b": 2}
PADDING = 1
"""A token that takes half of the text, and is excluded in some runs: LLM batches are uneven."""


class Model(torch.nn.Module):
    """Like a HookedTransformer: activations are embeddings, other ones at each hook."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.W_E = torch.nn.Parameter(torch.randn(VOCABULARY, 8, generator=draw))
        self.tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=2)
        self.forwards = 0
        self.fails_at: int | None = None

    def run_with_cache(self, tokens: Any, names_filter: Any, **_: Any) -> Any:
        self.forwards += 1
        if self.forwards == self.fails_at:
            raise KeyboardInterrupt
        embedded = self.W_E[tokens] + torch.arange(tokens.shape[1])[:, None]
        return None, {
            hook: embedded[..., i : i + HOOKS.get(hook, D_IN)]
            for i, hook in enumerate(names_filter)
        }

    def to_tokens(self, text: str, **_: Any) -> torch.Tensor:
        return torch.tensor([[ord(letter) % VOCABULARY for letter in text]])


def rows(n: int, raw: bool, seed: int = 5, length: int = 4) -> list[dict[str, Any]]:
    """A text: `n` tokenised sequences, or documents that make about as many."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (n, length), generator=draw)
    tokens[torch.rand(n, length, generator=draw) < 0.5] = PADDING
    if not raw:
        return [{"tokens": row} for row in tokens.tolist()]
    letters = "".join(map(chr, tokens.flatten().tolist()))
    cuts = torch.randint(1, 11, (n,), generator=draw).cumsum(0).tolist()
    texts = (letters[start:end] for start, end in zip([0, *cuts], cuts, strict=False))
    return [{"text": text} for text in texts if text]


def make_store(**changed: Any) -> ActivationsStore:
    fields: dict[str, Any] = {
        "model": Model(),
        "raw": False,
        "sequences": 11,
        "seed": 5,
        "cached": None,
        "multi_hook": False,
        "n_batches_in_buffer": 6,
        "store_batch_size_prompts": 2,
        "train_batch_size_tokens": 5,
        "exclude": False,
        "activations_mixing_fraction": 0.5,
        "context_size": 4,
        "hook_name": next(iter(HOOKS)),
        "d_in": D_IN,
    } | changed
    raw, sequences, seed = fields.pop("raw"), fields.pop("sequences"), fields.pop("seed")
    text = fields.pop("text", None) or rows(sequences, raw, seed)
    cached, multi_hook = fields.pop("cached"), fields.pop("multi_hook")
    exclude = torch.tensor([PADDING]) if fields.pop("exclude") else None
    fields |= {
        "dataset": None if cached else text,
        "streaming": False,
        "total_training_tokens": 100,
        "prepend_bos": raw,
        "normalize_activations": "none",
        "device": torch.device("cpu"),
        "dtype": "float32",
        "exclude_special_tokens": exclude,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not multi_hook:
            return ActivationsStore(hook_head_index=None, cached_activations_path=cached, **fields)
        del fields["hook_name"], fields["d_in"]
        return ActivationsStore.from_config_multi_hook(
            hook_names=list(HOOKS), hook_d_ins=HOOKS, **fields
        )
