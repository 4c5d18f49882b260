"""How well an SAE reconstructs activations that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

TOKENS_AT_ONCE = 4096
"""Tokens encoded together: bounds the memory at this many times d_sae numbers."""


class ActivationSource(Protocol):
    """What is needed of SAELens' `ActivationsStore`."""

    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Tensor:
        """The next activations [n, d_in]; raises StopIteration where the text ends, if asked."""
        ...


class AtHand:
    """An `ActivationSource` of batches that are there already."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        """Give each batch once."""
        self.batches = iter(batches)

    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Tensor:
        """The next batch."""
        return next(self.batches)


@torch.no_grad()
def heldout_metrics(
    saes: Sequence[SAE[Any]], store: ActivationSource, n_tokens: int
) -> list[dict[str, float]]:
    """Score inference SAEs on the same activations from a store over held-out text.

    Which tokens count is the store's own `exclude_special_tokens` and `seqpos_slice`: build it
    with the training run's, and the numbers are about the distribution that the SAE was trained
    on. SAELens trains on BOS positions unless `exclude_special_tokens` is set. Their norm can be a
    hundred times that of other tokens, and they are all alike, so that where they are included,
    they can make up most of the variance.

    Sums are in float64. Activations are used as the language model gives them; whatever
    normalisation the SAE holds is its own part.

    Args:
        saes: each as `SAE.load_from_disk` gives it.
        store: an `ActivationsStore`; batches are taken in the order of the text, unshuffled.
        n_tokens: tokens to use at least; fewer if the text ends before, rather than tokens twice.

    Returns:
        For each SAE:
        `explained_variance`: 1 - sum ||x - x_hat||^2 / sum ||x - mean||^2, with the mean over all
        the held-out tokens; 0 is what predicting that mean achieves.
        `mse`: squared error per token, summed over d_in, in squared activation units.
        `cosine`: cosine between x and x_hat, mean over tokens.
        `l0`: non-zero features per token.
        `never_fired`: share of the features that are zero on every token, in 0..1.
        `tokens`: tokens used.

    Raises:
        ValueError: the text holds less than one batch of the store.
    """
    scored = [(sae, Sums(sae.cfg.d_in, sae.cfg.d_sae, sae.device)) for sae in saes]
    tokens = 0
    with ExitStack() as stack:
        for sae in saes:
            stack.enter_context(_heads_concatenated(sae))
        progress = stack.enter_context(
            # None: drawn on a terminal only
            tqdm(total=n_tokens, desc="Held-out text", unit="token", leave=False, disable=None)
        )
        while scored and tokens < n_tokens:
            try:
                batch = store.get_filtered_llm_batch(raise_on_epoch_end=True)
            except StopIteration:
                break
            for part in batch.split(TOKENS_AT_ONCE):
                for sae, sums in scored:
                    codes = sae.encode(part.to(sae.device, sae.dtype))
                    sums.add(part, codes, sae.decode(codes))
            tokens += len(batch)
            progress.update(len(batch))
    if scored and not tokens:
        raise ValueError(
            "no held-out activations: the text holds less than one batch "
            "(store_batch_size_prompts x context_size tokens), or every token of it is excluded"
        )
    return [sums.metrics() for _, sums in scored]


def tokens_after(store: ActivationSource, scored: int, tokens: int) -> list[Tensor]:
    """Activations of so many tokens after those that `heldout_metrics` scores; fewer at the end."""
    passed, kept = 0, list[Tensor]()
    try:
        while passed < scored:
            passed += len(store.get_filtered_llm_batch(raise_on_epoch_end=True))
        while sum(map(len, kept)) < tokens:
            kept.append(store.get_filtered_llm_batch(raise_on_epoch_end=True))
    except StopIteration:
        pass
    return kept


@contextmanager
def _heads_concatenated(sae: SAE[Any]) -> Iterator[None]:
    """As in training, the store gives heads already concatenated."""
    if not getattr(sae, "hook_z_reshaping_mode", False):  # others' SAEs have no such mode
        yield
        return
    sae.turn_off_forward_pass_hook_z_reshaping()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        sae.turn_on_forward_pass_hook_z_reshaping()  # type: ignore[no-untyped-call]


class Sums:
    """Running sums over tokens, in float64, from which `heldout_metrics` come."""

    def __init__(self, d_in: int, d_sae: int, device: torch.device | str) -> None:
        """Nothing is summed yet."""
        self.device = torch.device(device)
        self.tokens = 0
        self.squared_error, self.cosine, self.active, self.squared_norm = torch.zeros(
            4, dtype=torch.float64, device=device
        )
        self.fired = torch.zeros(d_sae, dtype=torch.bool, device=device)
        # about the first tokens' mean: a large common mean would cost digits of the variance
        self.shift: Tensor | None = None
        self.total = torch.zeros(d_in, dtype=torch.float64, device=device)

    def add(self, acts: Tensor, codes: Tensor, sae_out: Tensor) -> None:
        """Add activations [n, d_in], their codes [n, d_sae] and reconstructions [n, d_in]."""
        if not len(acts):
            return
        x, reconstruction = (part.to(self.device, torch.float64) for part in (acts, sae_out))
        if self.shift is None:
            self.shift = x.mean(dim=0)
        self.tokens += len(x)
        self.total += (x - self.shift).sum(dim=0)
        self.squared_norm += (x - self.shift).square().sum()
        self.squared_error += (x - reconstruction).square().sum()
        self.cosine += torch.nn.functional.cosine_similarity(x, reconstruction, dim=-1).sum()
        active = (codes.to_dense() if codes.is_sparse else codes) != 0
        self.active += active.sum()
        self.fired |= active.any(dim=0)

    def metrics(self) -> dict[str, float]:
        """The metrics of all tokens added so far."""
        variance = self.squared_norm - self.total.square().sum() / self.tokens
        return {
            "explained_variance": (1 - self.squared_error / variance).item(),
            "mse": (self.squared_error / self.tokens).item(),
            "cosine": (self.cosine / self.tokens).item(),
            "l0": (self.active / self.tokens).item(),
            "never_fired": 1 - self.fired.double().mean().item(),
            "tokens": self.tokens,
        }
