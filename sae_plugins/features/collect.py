"""One pass over a text, in which everything is gathered that is shown of features' activations.

What is kept per feature has a fixed size, on the device of the SAE: its count, a histogram, the
strongest firings and a random sample of all firings. Which features fire together is counted
afterwards, from firings that are remembered on bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.errors import SuiteError
from sae_plugins.features.firings import Firings, Rows
from sae_plugins.features.histogram import Histogram
from sae_plugins.features.keep import Best, Entries, rank_at_random, rank_of_value
from sae_plugins.features.text import Prompts

TOP, SAMPLE = 10, 20
"""Strongest firings that are kept of each feature, and random ones."""
BEFORE, AFTER = 14, 9
"""Tokens that are shown before and after one at which a feature fires."""
_AT_ONCE, _TOKENS_AT_ONCE = 1 << 23, 256
"""Numbers [tokens, d_sae] that an SAE encodes at once, and tokens: more leave a CPU's caches."""


@dataclass(frozen=True)
class Batch:
    """All firings on some prompts that follow each other in the text.

    Attributes:
        tokens: [prompts, context_size].
        first: number of the first prompt.
        d_sae: how many features there are.
        token: of each firing, the place in the batch; never falling.
        feature: of each firing; rising at equal tokens.
        value: of each firing, above 0.
    """

    tokens: Tensor
    first: int
    d_sae: int
    token: Tensor
    feature: Tensor
    value: Tensor

    def position(self, chosen: Tensor) -> Tensor:
        """Where firings are among all tokens."""
        return self.token[chosen] + self.first * self.tokens.shape[1]

    def entries(self, chosen: Tensor, rank: Tensor, keys: Tensor) -> Entries:
        """Firings with what is around them."""
        return Entries(
            self.feature[chosen].to(torch.int32),
            rank,
            keys[self.token[chosen]],
            self.position(chosen),
            self.value[chosen],
            self._windows(chosen),
        )

    def _windows(self, chosen: Tensor) -> Tensor:
        """Activations [n, width] of each firing's feature around it, as multiples of its own."""
        size = self.tokens.shape[1]
        offsets = torch.arange(-BEFORE, AFTER + 1, device=self.token.device)
        place = self.token[chosen, None] + offsets
        is_inside = place // size == self.token[chosen, None] // size
        wanted = place * self.d_sae + self.feature[chosen, None]
        known = self.token * self.d_sae + self.feature
        at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        values = self.value[at].where(is_inside & (known[at] == wanted), 0)
        ratios = values / self.value[chosen, None]
        return ratios.clamp(max=torch.finfo(torch.float16).max).half()  # beside a tiny firing


class Collector:
    """What is gathered of the features of one SAE."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        """Nothing has been seen."""
        self.d_sae = d_sae
        self.count = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.histogram = Histogram(d_sae, device)
        self.top, self.sample = Best(d_sae, TOP, device), Best(d_sae, SAMPLE, device)

    def add(self, batch: Batch) -> None:
        """See the next prompts, in which nothing may fire."""
        self.count += torch.bincount(batch.feature, minlength=self.d_sae)
        self.histogram.add(batch.feature, batch.value)
        keys = window_keys(batch.tokens).flatten()
        rank = rank_of_value(batch.value)
        chosen = self.top.wants(batch.feature, rank).nonzero().squeeze(1)
        chosen = _best_of_each_prompt(batch, chosen)
        self.top.add(batch.entries(chosen, rank[chosen], keys))
        every = torch.arange(len(batch.token), device=batch.token.device)
        rank = rank_at_random(batch.feature, batch.position(every))
        chosen = self.sample.wants(batch.feature, rank).nonzero().squeeze(1)
        self.sample.add(batch.entries(chosen, rank[chosen], keys))


@dataclass(frozen=True)
class Collected:
    """What one pass over a text has gathered.

    Attributes:
        tokens: all prompts [n, context_size].
        counted: how many tokens of them count.
        saes: of each SAE.
        acts: of each SAE, the activations [tokens, d_sae] that are remembered.
        every: of how many prompts one is remembered.
    """

    tokens: Tensor
    counted: int
    saes: list[Collector]
    acts: list[Any]
    every: int


def collect(
    prompts: Prompts,
    saes: Sequence[Any],
    tokens: int,
    at_once: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Collected:
    """Read a text once.

    Args:
        prompts: the text.
        saes: inference SAEs of the same hook.
        tokens: how many to read; fewer if the text ends before.
        at_once: prompts that the language model reads at once.
        progress: called with the number of tokens that have been read since the last call.

    Raises:
        SuiteError: the text is not even one prompt, or activations are no numbers.
    """
    size = prompts.context_size
    d_saes = [int(sae.cfg.d_sae) for sae in saes]
    collectors = [Collector(d, sae.W_dec.device) for d, sae in zip(d_saes, saes, strict=True)]
    firings, counted, read = Firings(d_saes), 0, list[Tensor]()
    first = 0
    for batch in prompts.batches(-(-tokens // size), at_once):
        keep = prompts.counting(batch)
        acts = prompts.activations(batch)[keep.to(prompts.store.device)]
        counted += len(acts)
        found = [
            _see(sae, collector, batch, first, keep, acts)
            for sae, collector in zip(saes, collectors, strict=True)
        ]
        for number, rows in enumerate(zip(*found, strict=True)):
            firings.add(first + number, list(rows))
        read.append(batch.to("cpu", torch.int32))
        first += len(batch)
        progress(batch.numel())
    if not counted:
        raise _nothing(prompts)
    return Collected(torch.cat(read), counted, collectors, firings.matrices(), firings.every)


def _nothing(prompts: Prompts) -> SuiteError:
    return SuiteError(
        f"{prompts.name} is shorter than one prompt of {prompts.context_size} tokens, or all of "
        "its tokens are special; give a longer text with --dataset_path"
    )


def _see(
    sae: Any, collector: Collector, batch: Tensor, first: int, keep: Tensor, acts: Tensor
) -> list[Rows]:
    """Have a collector see prompts, and give their firings.

    Args:
        sae: the collector's.
        collector: sees them.
        batch: tokens [prompts, context_size].
        first: number of the first prompt.
        keep: which tokens count.
        acts: activations [n, d_in] at those.
    """
    row, feature, value = fire(sae, acts)
    place = keep.flatten().nonzero().squeeze(1).to(row.device)
    tokens = batch.to(row.device)
    collector.add(Batch(tokens, first, collector.d_sae, place[row], feature, value))
    return _by_prompt(row, feature, value, keep.sum(dim=1))


@torch.no_grad()
def fire(sae: Any, acts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The firings on activations [n, d_in]: rows, features, and activations without their signs.

    Raises:
        SuiteError: activations are no numbers.
    """
    rows, features, values = list[Tensor](), list[Tensor](), list[Tensor]()
    step = max(1, min(_TOKENS_AT_ONCE, _AT_ONCE // int(sae.cfg.d_sae)))
    for first in range(0, len(acts), step):
        part = acts[None, first : first + step].to(sae.W_dec.device, sae.W_dec.dtype)
        codes = sae.encode(part)
        codes = (codes.to_dense() if codes.is_sparse else codes)[0]
        row, feature = codes.nonzero(as_tuple=True)
        rows.append(row + first)
        features.append(feature)
        values.append(codes[row, feature].float().abs())
    value = torch.cat(values) if values else acts.new_zeros(0)
    if not value.isfinite().all():
        raise SuiteError("the SAE's activations on this text are not all numbers (NaN or infinite)")
    none = torch.zeros(0, dtype=torch.long, device=value.device)
    return torch.cat([none, *rows]), torch.cat([none, *features]), value


def window_keys(tokens: Tensor) -> Tensor:
    """A hash [prompts, context_size] of the tokens that are shown around each token."""
    size = tokens.shape[1]
    padded = torch.nn.functional.pad(tokens.long() + 1, (BEFORE, AFTER))
    generator = torch.Generator().manual_seed(1)
    factors = torch.randint(2**62, (BEFORE + 1 + AFTER,), generator=generator) * 2 + 1
    keys = torch.zeros_like(tokens, dtype=torch.long)
    for offset, factor in enumerate(factors.tolist()):
        keys += padded[:, offset : offset + size] * factor
    return keys


def _best_of_each_prompt(batch: Batch, chosen: Tensor) -> Tensor:
    """Of firings of one feature in one prompt, the strongest; of equals, the first."""
    order = torch.argsort(batch.value[chosen], descending=True, stable=True)
    prompt = batch.token[chosen] // batch.tokens.shape[1]
    place = (prompt * batch.d_sae + batch.feature[chosen])[order]
    by_place = torch.argsort(place, stable=True)
    is_first = torch.ones_like(place, dtype=torch.bool)
    is_first[1:] = place[by_place][1:] != place[by_place][:-1]
    return chosen[order[by_place[is_first]]].sort().values


def _by_prompt(row: Tensor, feature: Tensor, value: Tensor, kept: Tensor) -> list[Rows]:
    """The firings of each prompt, as `Firings` remembers them."""
    per_token = torch.bincount(row, minlength=int(kept.sum())).to("cpu", torch.int32)
    features, values = feature.to("cpu", torch.int32).numpy(), value.cpu().numpy()
    found, at = list[Rows](), 0
    for counts in per_token.split(kept.tolist()):
        end = at + int(counts.sum())
        found.append((counts.numpy(), features[at:end].copy(), values[at:end].copy()))
        at = end
    return found
