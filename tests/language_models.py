"""Language models for tests: one at hand, and folders with small ones that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae_plugins.runs.language_models.loader import Loader, Looks

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
D_IN, CONTEXT, VOCABULARY = 32, 64, 259


class Given(Loader):
    """Loads a model that is there."""

    model_class, kind = "HookedTransformer", "given by a test"

    def __init__(self, model: Any, name: str = "given") -> None:
        super().__init__(name, {})
        self.model = model

    def _looks(self) -> Looks:
        cfg = self.model.cfg
        return Looks(self.model, cfg.n_ctx, cfg.d_vocab)

    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any:
        return self.model


def tokenizer() -> Any:
    """One of bytes, with tokens for the beginning, the end and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def save(folder: Path, kind: str = "Llama", with_tokenizer: bool = True, **changes: Any) -> Path:
    """Write a small random model as transformers saves it.

    Args:
        folder: where to.
        kind: of the architecture, such as Llama: transformers' `KindConfig`, `KindForCausalLM`.
        with_tokenizer: whether its tokenizer lies beside it.
        changes: of its config.
    """
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        **{**SHAPE, "vocab_size": VOCABULARY, **changes}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder
