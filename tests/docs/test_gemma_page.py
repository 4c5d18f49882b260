"""The page on Gemma-2-2B says what the code computes: bytes of memory, and of the disk."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base.files import size
from sae_plugins.entrypoints.train_disk import bytes_of_checkpoint, bytes_on_disk, most_checkpoints
from sae_plugins.runs import language_model
from sae_plugins.runs.language_model import LanguageModelSetup
from sae_plugins.runs.lockstep import SHARE_OF_MEMORY
from sae_plugins.runs.memory import beside_saes, bytes_in_training
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settings import Settings
from sae_plugins.settings.settle import settle

PAGE = (Path(__file__).parents[2] / "docs" / "gemma.md").read_text("utf-8")
IN_BFLOAT16 = """ --model_from_pretrained_kwargs '{"dtype": "bfloat16"}'"""
COLUMNS = {
    "language model": ("the language model",),
    "buffer": ("the buffer of activations",),
    "SAE in training": ("the SAE with",),
    "batches": ("a batch (", "a batch of it"),
}
"""What the page calls needs, and how these begin."""
Build = Callable[[str], tuple[Settings, LanguageModelSetup]]


def table(first: str) -> list[list[str]]:
    """The rows of the page's tables whose first cell begins so."""
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in cells] for cells in lines]
    return [cells for cells in rows if cells[0].startswith(first)]


RUNS = [cells[0].strip("`") for cells in table("`--recipe")]


@pytest.fixture(scope="module")
def build() -> Iterator[Build]:
    """Settles a run on Gemma-2-2B, as a GPU of any size would have it; nobody asks the Hub."""
    looks = functools.cache(lambda dtype, loader: loader.looks())

    def built(flags: str) -> tuple[Settings, LanguageModelSetup]:
        settings = settle(train_flags(shlex.split(flags)))
        return settings, LanguageModelSetup(settings.for_saelens(), is_loaded=False)

    with pytest.MonkeyPatch.context() as patch:
        loaders: dict[Any, Any] = {}

        def model_looks(loader: Any) -> Any:
            dtype = str(loader.kwargs.get("dtype"))
            return looks(dtype, loaders.setdefault(dtype, loader))

        patch.setattr(language_model, "model_looks", model_looks)
        patch.setattr(language_model, "commits", lambda *_: {})
        patch.setattr(language_model, "check_devices", lambda _: None)
        patch.setattr(language_model, "check_memory", lambda _: None)
        yield built


def needs_of(setup: LanguageModelSetup) -> dict[str, dict[str, float]]:
    """What is needed on each device, by what for."""
    found: dict[str, dict[str, float]] = {}
    for need in setup.needs(is_there=False):
        found.setdefault(need.device, {})[need.what] = need.count
    return found


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, marks=[pytest.mark.ci] if place else []) for place, run in enumerate(RUNS)],
)
def test_a_row_is_what_the_start_of_a_run_computes(run: str, build: Build) -> None:
    ((_, *cells),) = [cells for cells in table("`--recipe") if cells[0].strip("`") == run]
    _, setup = build(run)
    needs = needs_of(setup)
    for said, begins in zip(cells, COLUMNS.values(), strict=False):
        found = [count for what, count in needs["cuda"].items() if what.startswith(begins)]
        assert said == (size(sum(found)) if found else "")
    assert cells[-1] == size(sum(needs["cuda"].values()))
    assert ("cpu" in needs) == ("act_store_device cpu" in run)


@pytest.mark.ci
def test_what_a_run_leaves_on_the_disk(build: Build) -> None:
    for column, flags in ((1, ""), (2, " --d_sae 16384")):
        settings, setup = build(f"--recipe hybrid-order{flags}")
        assert table("a checkpoint")[0][column] == size(bytes_of_checkpoint(settings, setup))
        assert table("the saved SAE")[0][column] == size(bytes_on_disk(settings, setup) / 2)
        assert most_checkpoints(settings) == 3  # "up to three"


@pytest.mark.ci
def test_what_trains_at_once(build: Build) -> None:
    for card, flags in (
        ("80 GB, in float32", ""),
        ("24 GB, in bfloat16", IN_BFLOAT16),
        ("24 GB, in float32", ""),
    ):
        ((_, saes, together),) = table(card)
        _, setup = build(f"--recipe hybrid-order --d_sae 16384{flags}")
        each = bytes_in_training(setup.sae_config)
        rest = beside_saes(setup.needs(is_there=False), "cuda")
        count = int(SHARE_OF_MEMORY * (float(card.split()[0]) * 1e9 - rest) // each)
        assert saes == str(count)
        assert together == size(count * each + rest)
        assert count * each + rest < float(card.split()[0]) * 1e9
