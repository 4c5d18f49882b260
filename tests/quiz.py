"""A hand-made language model that answers questions with four choices, and questions for it.

Its second block copies each letter to the word after it, its third looks from the end of a prompt
for a word that it knows as an answer, and says the letter that was copied there. So what it knows
stands in the residual stream between them, a dimension for each word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ABOUT_BIOLOGY = ("toxin", "spore", "virus", "fever", "enzyme", "plague")
ABOUT_AGING = ("retire", "memory", "wisdom", "pension")
KNOWN = ABOUT_BIOLOGY + ABOUT_AGING
"""The words that it knows as answers."""
UNKNOWN = ("alpha", "beta", "gamma", "delta")
_SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")
_LETTERS = ("A", "B", "C", "D")
_TOKENS = (*_SPECIAL, *_LETTERS, *(f" {letter}" for letter in _LETTERS), "\n", ".", ":", " (", "(",
           *(f" {word}" for word in (*KNOWN, *UNKNOWN, "the", "of", "and")))  # fmt: skip
POSITIONS = 80
D_IN, SIZE = 192, 40.0
"""Of its activations, and how long those of a word are."""
FOLDERS = {
    "corpus": "cais/wmdp-corpora",
    "biology": "cais/wmdp/wmdp-bio",
    "aging": "cais/mmlu/human_aging",
    "text": "Salesforce/wikitext/wikitext-2-raw-v1",
}


def dimension(word: str) -> int:
    """Where a word stands in the residual stream."""
    return _TOKENS.index(f" {word}")


def tokenizer() -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(_TOKENS)}, unk_token="<unk>"))
    made.add_special_tokens([AddedToken(token) for token in _SPECIAL])
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), "isolated")
    made.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>", padding_side="right", name_or_path="quiz", add_bos_token=True,
    )  # fmt: skip


def hooked_transformer(name: str = "gemma-2-2b-it") -> Any:
    """The model, under a name that SAEBench knows."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=3, d_model=D_IN, n_ctx=POSITIONS, d_head=POSITIONS, n_heads=1, attn_only=True,
        d_vocab=len(_TOKENS), normalization_type=None, model_name=name, device="cpu", seed=0,
    )  # fmt: skip
    model = HookedTransformer(config, tokenizer(), default_padding_side="right")
    for parameter in model.parameters():
        parameter.requires_grad_(False).zero_()
    copied = slice(len(_TOKENS) + POSITIONS, len(_TOKENS) + POSITIONS + len(_LETTERS))
    places = torch.arange(POSITIONS)
    model.W_E[torch.arange(len(_TOKENS)), torch.arange(len(_TOKENS))] = SIZE
    model.W_pos[places, len(_TOKENS) + places] = SIZE
    copying, looking = model.blocks[1].attn, model.blocks[2].attn
    copying.W_Q[0, len(_TOKENS) + places, places] = 10
    copying.W_K[0, len(_TOKENS) + places[:-2], places[2:]] = 10  # two before: " A", "A", ".", word
    for number, letter in enumerate(_LETTERS):
        copying.W_V[0, _TOKENS.index(letter), number] = 1
    looking.b_Q[0, 0] = 1
    for word in KNOWN:
        looking.W_K[0, dimension(word), 0] = 10
    numbers = torch.arange(len(_LETTERS))
    for attn in (copying, looking):
        attn.W_O[0, numbers, numbers + copied.start] = 1
    looking.W_V[0, copied, : len(_LETTERS)] = torch.eye(len(_LETTERS))
    for number, letter in enumerate(_LETTERS):
        model.W_U[copied.start + number, [_TOKENS.index(letter), _TOKENS.index(f" {letter}")]] = 1
    return model.eval()


def questions(words: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """One for each word, and one that nobody can answer."""
    for number, word in enumerate((*words, "delta")):
        wrong = [each for each in UNKNOWN if each != word][:3]
        place = number % 4
        yield {
            "question": f"Which is the word of number {number}?",
            "choices": [*wrong[:place], word, *wrong[place:]],
            "answer": place,
        }


def write(folder: Path) -> Path:
    """Write the questions, a corpus and a text into a folder, as `--data` takes it.

    A word of biology stands the oftener in the corpus the earlier it is among them; the last one
    stands in the text too.
    """
    corpus = [
        " ".join((*ABOUT_BIOLOGY[: 1 + number % 6], "the", "of", "and") * 3) for number in range(24)
    ]
    text = [" ".join((*ABOUT_AGING, "the", "of", "and", "the", "plague") * 3) for _ in range(12)]
    files = {
        f"{FOLDERS['corpus']}/bio-forget-corpus.jsonl": [{"text": " " + each} for each in corpus],
        f"{FOLDERS['biology']}/test.jsonl": questions(ABOUT_BIOLOGY),
        f"{FOLDERS['aging']}/test.jsonl": questions(ABOUT_AGING),
        f"{FOLDERS['text']}/test.jsonl": [{"text": " " + each} for each in text],
    }
    for name, rows in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def knowing(*words: str, least: float = 0.5, norm: float = 1.0) -> Any:
    """Changes an SAE into one with a latent for each of these words, and none for the rest.

    Args:
        words: those.
        least: what of a word a latent does not take for its own.
        norm: of the decoder rows; codes are divided by it.
    """

    @torch.no_grad()
    def change(sae: Any) -> None:
        rows = torch.eye(D_IN)[[*map(dimension, words), *[0] * (len(sae.W_dec) - len(words))]]
        sae.W_dec.copy_(rows * norm)
        sae.W_enc.copy_(rows.T / norm)
        sae.b_dec.zero_()
        sae.b_enc.fill_(-1e6)
        sae.b_enc[: len(words)] = -least / norm

    return change
