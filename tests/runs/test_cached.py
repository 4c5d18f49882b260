"""Training on cached activations, in the very environment that is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from sae_lens import SAE
from safetensors.torch import load_file

from sae_plugins.entrypoints.main import main

HOOK = "blocks.1.hook_resid_post"
ROWS, HELD = 300, 16
RUN = [
    *("--training_tokens", "2000", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "250"),
]
CACHED = ["--use_cached_activations", "--cached_activations_path", "cached"]


@pytest.fixture(autouse=True)
def _tiny(tiny_world: Any, sketched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model for the embedded world; nothing has told datasets yet about torchvision."""
    import torchvision  # noqa: F401

    monkeypatch.setattr(datasets.config, "TORCHVISION_AVAILABLE", True)


def cache(tiny_world: Any, tokens: bool = True) -> torch.Tensor:
    """The activations of the text that a run with seed 42 reads, in its order."""
    text = torch.tensor(tiny_world.text("train").shuffle(seed=42)["tokens"])
    _, found = tiny_world.model().run_with_cache(text, names_filter=[HOOK], prepend_bos=False)
    shape = (tiny_world.context, tiny_world.d_model)
    features: dict[str, Any] = {HOOK: Array2D(shape, "float32")}
    columns = {HOOK: found[HOOK].numpy()}
    if tokens:
        features["token_ids"] = Sequence(Value("int32"), length=tiny_world.context)
        columns["token_ids"] = text.numpy()
    Dataset.from_dict(columns, features=Features(features)).save_to_disk("cached")
    return found[HOOK]


def train(output: str, *arguments: str, code: int = 0) -> Path:
    assert main(["train", *RUN, "--output_path", output, *arguments]) == code
    return Path(output)


@pytest.mark.parametrize("tokens", [True, pytest.param(False, marks=pytest.mark.ci)])
def test_it_trains_on_the_cached_rows_and_scores_on_those_held_out(
    tiny_world: Any, tokens: bool
) -> None:
    activations = cache(tiny_world, tokens)
    run = train("run", *CACHED)
    sae = SAE.load_from_disk(str(run))
    held = activations[-HELD:].flatten(0, 1)  # 250 tokens, in whole batches of 4 rows
    with torch.no_grad():
        error = (held - sae(held)).square().sum(dim=1).mean()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["heldout/tokens"] == HELD * tiny_world.context
    assert summary["heldout/mse"] == pytest.approx(error.item(), rel=1e-4)
    itself = load_file(train("itself") / "sae_weights.safetensors")
    for name, tensor in load_file(run / "sae_weights.safetensors").items():
        torch.testing.assert_close(tensor, itself[name], atol=1e-4, rtol=1e-4)


def test_shards_with_too_few_rows_are_refused_before_training(
    tiny_world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cache(tiny_world)
    hook, size = HOOK, HELD + 2 * 4 - 1
    few = datasets.load_from_disk("cached").select(range(size)).with_format("arrow")
    few.save_to_disk("few")
    assert hook in few.features
    train("run", *CACHED[:-1], "few", "--heldout_tokens", "0", "--data_shards", "8", code=2)
    said = capsys.readouterr().err
    assert f"--data_shards 8: the {size} rows of cached activations to train on are too few" in said
    assert "cache 32 or more, or lower either number" in said
    assert not Path("run").exists()


def test_rows_that_are_held_out_are_not_trained_on(
    tiny_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.activations_store import ActivationsStore

    activations = cache(tiny_world)
    by_last = {tuple(row[-1].tolist()): number for number, row in enumerate(activations)}
    own, read = ActivationsStore.get_raw_llm_batch, []

    def reading(store: Any, *args: Any, **kwargs: Any) -> Any:
        batch = own(store, *args, **kwargs)
        read.append([by_last[tuple(row.tolist())] for row in batch[0].view(4, 16, -1)[:, -1]])
        return batch

    monkeypatch.setattr(ActivationsStore, "get_raw_llm_batch", reading)
    train("run", *CACHED, "--training_tokens", "6400")  # more than one epoch
    scored = [number for batch in read[-HELD // 4 :] for number in batch]
    trained = {number for batch in read[: -HELD // 4] for number in batch}
    assert scored == [*range(ROWS - HELD, ROWS)]
    assert trained == {*range(ROWS - HELD)}


def test_what_does_not_suit_the_cache_is_refused(
    tiny_world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cache(tiny_world, tokens=False)
    Path("empty").mkdir()
    for arguments, message in (
        ("--cached_activations_path empty", "empty lacks dataset_info.json, state.json; name"),
        ("--hook_name blocks.0.hook_resid_post", "cached has no activations of --hook_name blocks"),
        ("--context_size 8", "cached has rows of shape (16, 16), and this run wants (8, 16)"),
        ("--exclude_special_tokens 1", "--exclude_special_tokens: --cached_activations_path"),
        ("--heldout_tokens 2500", "cached is too small: of its 300 rows, scoring takes 160"),
        ("--seqpos_slice 1 -1", "--seqpos_slice: --use_cached_activations reads no text"),
    ):
        train("run", *CACHED, *arguments.split(), code=2)
        assert message in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_damaged_cache_is_named(tiny_world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cache(tiny_world)
    (file,) = Path("cached").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-5000])
    train("run", *CACHED, code=2)
    said = capsys.readouterr().err
    assert f"--cached_activations_path {Path('cached').absolute()} cannot be read (OSError" in said
    assert "cache the activations again" in said
