"""Prompts and activations that are at hand, and what a naive loop finds in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

D_IN, D_SAE, CONTEXT, VOCABULARY = 8, 24, 16, 12
SPECIAL = 0


@dataclass
class GivenPrompts:
    """Stands in for `Prompts`: tokens that are there, and an activation for each token."""

    tokens: Tensor
    acts: Tensor
    name: str = "text of the test"

    @property
    def context_size(self) -> int:
        return self.tokens.shape[1]

    @property
    def store(self) -> Any:
        return SimpleNamespace(device=torch.device("cpu"))

    def batches(self, prompts: int, at_once: int) -> Iterator[Tensor]:
        yield from self.tokens[:prompts].split(at_once)

    def activations(self, tokens: Tensor) -> Tensor:
        found = [(self.tokens == row).all(dim=1).nonzero()[0, 0] for row in tokens]
        return self.acts[torch.stack(found)]

    def counting(self, tokens: Tensor) -> Tensor:
        return tokens != SPECIAL


@pytest.fixture(scope="session")
def given_prompts() -> GivenPrompts:
    """Forty prompts, some of which have a long passage in common."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (40, CONTEXT), generator=generator)
    tokens[:, 0] = SPECIAL
    tokens[20:30, 1:15] = tokens[5, 1:15]  # the windows of their first tokens are equal
    tokens[20:30, 15] = torch.arange(10) % VOCABULARY
    tokens[20:30, 0] = torch.arange(10) + VOCABULARY
    tokens[7, 4:6] = SPECIAL
    acts = torch.randn(40, CONTEXT, D_IN, generator=generator)
    acts[tokens == SPECIAL] *= 1000
    return GivenPrompts(tokens, acts)


@pytest.fixture(scope="session")
def encoders() -> list[Any]:
    """Two inference SAEs of one hook; feature 3 of the first never fires."""
    made = []
    with torch.random.fork_rng(devices=[]):
        for seed, d_sae in enumerate((D_SAE, D_SAE + 8)):
            torch.manual_seed(seed)
            from sae_lens import StandardSAE, StandardSAEConfig

            sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=d_sae))
            with torch.no_grad():
                sae.W_enc.copy_(torch.randn(D_IN, d_sae))
                sae.b_enc.fill_(-1.5)
            made.append(sae)
        with torch.no_grad():
            made[0].b_enc[3] = -1e6
    return made
