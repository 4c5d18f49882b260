"""Open text in tokens, which SAEBench's core reads again for every SAE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.errors import SuiteError


class Text:
    """Stands in for an ActivationsStore over open text, whose tokens it keeps for the next SAE."""

    def __init__(self, store: Any) -> None:
        """Nothing is read yet."""
        self._store = store
        self._batches: list[Tensor] = []
        self._asked = 0
        self._is_shuffled = False
        self.context_size = store.context_size
        self.store_batch_size_prompts = store.store_batch_size_prompts

    def from_the_start(self) -> Text:
        """Itself, such that the first batch comes next."""
        self._asked = 0
        return self

    def shuffle_input_dataset(self, seed: int) -> None:
        """Shuffle, unless that has been done."""
        if not self._is_shuffled:
            self._store.shuffle_input_dataset(seed)
        self._is_shuffled = True

    def reset_input_dataset(self) -> None:
        """Go back in the text, unless that has been done."""
        if self._asked == len(self._batches):
            self._store.reset_input_dataset()

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        """The next tokens [batch_size, context_size]."""
        self._asked += 1
        if self._asked > len(self._batches):
            try:
                batch = self._store.get_batch_tokens(batch_size, raise_at_epoch_end=True)
            except StopIteration:
                raise SuiteError(
                    "the evaluation text ends before all batches are read: lower "
                    "--core.n_eval_sparsity_variance_batches or --core.skip_documents, or give "
                    "more text"
                ) from None
            self._batches.append(batch)
        return self.last_batch

    @property
    def last_batch(self) -> Tensor:
        """The batch that was given last."""
        return self._batches[self._asked - 1]

    def counts(self, reconstructed: int, hooked: Any) -> dict[str, int]:
        """By group of core's metrics, the tokens that count in so many batches."""
        tokenizer, kl, ce = hooked.tokenizer, 0, 0
        ignored = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
        for batch in self._batches[:reconstructed]:
            mask = counting(batch, ignored)
            kl += int(mask.sum())
            ce += int(mask[:, :-1].sum())  # nothing follows the last token
        return {"model_behavior_preservation": kl, "model_performance_preservation": ce}


def counting(tokens: Tensor, ignored: Iterable[int | None]) -> Tensor:
    """Where tokens are none of those that core ignores."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for token in ignored:
        if token is not None:
            mask &= tokens != token
    return mask
