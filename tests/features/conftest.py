"""Prompts and activations that are at hand, and what a naive loop finds in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sketches
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import Tensor

from sae_plugins import world
from sae_plugins.entrypoints.main import main
from sae_plugins.features.build import Request, build
from sae_plugins.features.result import FeaturePages

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
            sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=d_sae))
            with torch.no_grad():
                sae.W_enc.copy_(torch.randn(D_IN, d_sae))
                sae.b_enc.fill_(-1.5)
            made.append(sae)
        with torch.no_grad():
            made[0].b_enc[3] = -1e6
    return made


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small runs on the embedded world: one reordered, the other merged and resampled."""
    folder = tmp_path_factory.mktemp("runs")
    given = "--d_sae 96 --training_tokens 6144 --train_batch_size_tokens 256 --heldout_tokens 0"
    given += " --store_batch_size_prompts 4 --n_batches_in_buffer 8 --l1_coefficient 0.5"
    given += " --lr 0.004 --device cpu"
    plugins = {
        "ordered": "--plugin reorder --reorder.start 8 --reorder.interval 8",
        "merged": "--plugin merge resample --merge.threshold 0.2 --merge.every 6 "
        "--merge.other silence --firing-window.window 4",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches.Figure, "savefig", sketches.write)
        load = world.load_text  # all of it takes seconds to write
        patch.setattr(world, "load_text", lambda split, *_: load(split, 400))
        for name, flags in plugins.items():
            line = f"train {given} {flags} --output_path {folder / name}"
            assert main(line.split()) == 0
    return [folder / name for name in plugins]


@pytest.fixture(scope="session")
def pages(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> FeaturePages:
    """Pages of both runs on 2,048 tokens."""
    out = tmp_path_factory.mktemp("pages") / "both"
    return build(Request([*map(str, runs)], out, tokens=2048))
