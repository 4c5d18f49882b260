"""What the world's model knows: held-out cross-entropy beside n-gram baselines, and spelling."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sae_plugins.world import text
from sae_plugins.world.model import CONTEXT


@dataclass
class Bigrams:
    """Unigram (add one) and bigram (interpolated with it as by Witten and Bell) token models."""

    vocabulary: int
    unigrams: Counter[int] = field(default_factory=Counter)
    bigrams: Counter[tuple[int, int]] = field(default_factory=Counter)
    contexts: Counter[int] = field(default_factory=Counter)
    followers: Counter[int] = field(default_factory=Counter)  # distinct successors of a token

    def fit(self, documents: Iterable[Sequence[int]]) -> None:
        """Count documents of token ids, each with its `<bos>`; may be called again with more."""
        for ids in documents:
            self.unigrams.update(ids[1:])
            self.contexts.update(ids[:-1])
            self.bigrams.update(itertools.pairwise(ids))
        self.followers = Counter(first for first, _ in self.bigrams)

    def loss(self, ids: Sequence[int]) -> tuple[float, float]:
        """Summed negative log-likelihood (nats) of `ids[1:]`: (unigram, bigram)."""
        total, one, two = self.unigrams.total(), 0.0, 0.0
        for first, second in itertools.pairwise(ids):
            p = (self.unigrams[second] + 1) / (total + self.vocabulary)
            count, distinct = self.contexts[first], max(self.followers[first], 1)
            one -= log(p)
            two -= log((self.bigrams[first, second] + distinct * p) / (count + distinct))
        return one, two


@torch.inference_mode()
def model_loss(model: Any, documents: Sequence[Sequence[int]], batch: int = 32) -> list[float]:
    """Summed negative log-likelihood (nats) of each document of token ids after its `<bos>`."""
    losses = [0.0] * len(documents)
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(documents[i]) for i in rows)
        ids = torch.zeros(
            len(rows), width, dtype=torch.long
        )  # padding on the right: causal, unseen
        target = torch.full((len(rows), width), -100)
        for row, i in enumerate(rows):
            n = len(documents[i])
            ids[row, :n] = torch.tensor(documents[i])
            target[row, : n - 1] = ids[row, 1:n]
        logits = model(input_ids=ids).logits
        nll = cross_entropy(logits.transpose(1, 2), target, reduction="none").sum(1)
        for row, i in enumerate(rows):
            losses[i] = float(nll[row])
    return losses


def encode(tokenizer: Any, documents: Sequence[str]) -> list[list[int]]:
    """Token ids with `<bos>`, cut at the model's context."""
    return [ids[:CONTEXT] for ids in tokenizer(list(documents))["input_ids"]]


def cross_entropies(
    model: Any, tokenizer: Any, baselines: Bigrams, documents: Sequence[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """Nats per token and tokens of (genre, text) documents, per genre and for `all`."""
    encoded = encode(tokenizer, [document for _, document in documents])
    sums: dict[str, dict[str, float]] = {}
    for (genre, _), ids, nll in zip(documents, encoded, model_loss(model, encoded), strict=True):
        unigram, bigram = baselines.loss(ids)
        row = {"model": nll, "bigram": bigram, "unigram": unigram, "tokens": float(len(ids) - 1)}
        for key in (genre, "all"):
            mine = sums.setdefault(key, dict.fromkeys(row, 0.0))
            for column in row:
                mine[column] += row[column]
    return {
        genre: {
            column: value if column == "tokens" else value / row["tokens"]
            for column, value in row.items()
        }
        for genre, row in sorted(sums.items())
    }


@torch.inference_mode()
def spelling_accuracy(model: Any, tokenizer: Any, words: Sequence[str], seed: int = 0) -> float:
    """Share of `words` (a leading space counts) whose first letter has the highest logit.

    Prompts are SAEBench's: ten examples, which are never held-out words, then the word.
    """
    rng, pool = Random(f"spelling accuracy {seed}"), text.spelling_words("train")
    right = 0
    for start in range(0, len(words), 64):
        chunk = words[start : start + 64]
        prompts = []
        for word in chunk:
            examples = [
                w for w in rng.sample(pool, text.EXAMPLES_PER_PROMPT + 1) if w != word.strip()
            ]
            lines = [
                text.spelling_line(rng.choice(("", " ")) + w)
                for w in examples[: text.EXAMPLES_PER_PROMPT]
            ]
            prompts.append("\n" + "\n".join([*lines, text.SPELLING_TEMPLATE.format(word=word)]))
        ids = torch.tensor(tokenizer(prompts)["input_ids"])
        best = model(input_ids=ids).logits[:, -1].argmax(-1).tolist()
        right += sum(
            tokenizer.decode([token]) == f" {word.strip()[0].upper()}"
            for token, word in zip(best, chunk, strict=True)
        )
    return right / len(words)
