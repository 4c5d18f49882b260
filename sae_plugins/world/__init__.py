"""The embedded world: a small Gemma-2-architecture language model and its text. See README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import HookedSAETransformer

NAME = "sae-plugins-world"

__all__ = [
    "NAME",
    "d_in",
    "load_hf_model",
    "load_hooked_transformer",
    "load_text",
    "load_tokenizer",
    "path",
]


def path() -> Path:
    """The folder of the model's files: a Hugging Face model directory."""
    return Path(__file__).parent / "data"


def d_in() -> int:
    """The size of the model's residual stream."""
    return int(json.loads((path() / "config.json").read_text("utf-8"))["hidden_size"])


def load_hf_model() -> Any:
    """The `Gemma2ForCausalLM` in eval mode, in float32 (it is stored in float16)."""
    from transformers import Gemma2ForCausalLM

    model: Any = Gemma2ForCausalLM.from_pretrained(
        str(path()), dtype="float32", attn_implementation="eager"
    )
    return model.eval()


def load_tokenizer() -> Any:
    """The tokenizer; it prepends `<bos>`, as Gemma's does."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path()))


def load_hooked_transformer(device: str = "cpu", dtype: str = "float32") -> HookedSAETransformer:
    """The model in TransformerLens, weights unprocessed: logits equal those of `load_hf_model`.

    SAELens' class of it, to which SAEs can be attached: `run_with_saes` and the like.
    """
    from sae_plugins.world.model import to_hooked_transformer

    return to_hooked_transformer(load_hf_model(), load_tokenizer(), NAME, device, dtype)


def load_text(
    split: Literal["train", "heldout"], documents: int | None = None, seed: int = 0
) -> Dataset:
    """A shuffled mix of all genres, one document a row, in the one column `text`.

    By default about 24,000 documents (2 million tokens) to train on or 4,000 held out; other seeds
    give other documents of the same split.
    """
    from datasets import Dataset

    from sae_plugins.world import text

    return Dataset.from_dict(
        {"text": [document for _, document in text.mix(split, documents, seed)]}
    )
