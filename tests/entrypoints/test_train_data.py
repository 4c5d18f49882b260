"""`train` on data as people have them, from end to end on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, DatasetDict
from faults import interrupted

from sae_plugins.entrypoints.main import main

RUN = [
    *("--training_tokens", "640", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--d_sae", "32"),
    *("--heldout_tokens", "64", "--n_batches_for_norm_estimate", "2", "--recorder.every", "1"),
]


@pytest.fixture(autouse=True)
def _folder(tiny_world: Any, sketched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache").absolute())


def rows_of(tiny_world: Any) -> list[list[int]]:
    return [list(row) for row in tiny_world.text("train")["tokens"]]


def train(*arguments: str, code: int = 0) -> None:
    assert main(["train", *arguments]) == code


def weights(folder: str) -> bytes:
    return Path(folder, "sae_weights.safetensors").read_bytes()


@pytest.mark.ci
def test_a_run_with_relative_paths_goes_on_from_another_folder(
    tiny_world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("here", "there"):
        Path(name).mkdir()
    monkeypatch.chdir("here")
    lines = (json.dumps({"tokens": row}) + "\n" for row in rows_of(tiny_world))
    Path("text.jsonl").write_text("".join(lines))
    run = [*RUN, "--dataset_path", "text.jsonl", "--checkpoint_every", "2", "--n_checkpoints", "2"]
    train(*run, "--output_path", "whole", "--checkpoint_path", "whole-own")

    with interrupted(6):
        train(*run, "--output_path", "run", "--checkpoint_path", "own", code=130)
    monkeypatch.chdir("../there")
    train("--resume", "../here/run", "--dataset_path", "../here/text.jsonl")
    monkeypatch.chdir("../here")
    assert weights("run") == weights("whole")
    assert [*Path("../there").iterdir()] == []
    own, other = (
        sorted(p.relative_to(f) for p in Path(f).rglob("*")) for f in ("own", "whole-own")
    )
    assert own == other != []
    recipe = yaml.safe_load(Path("run", "run.yaml").read_text())
    assert recipe["dataset_path"] == str(tmp_path / "here" / "text.jsonl")
    kept = json.loads(Path("run", "runner_cfg.json").read_text())
    assert kept["output_path"] == "run"


@pytest.mark.ci
def test_which_part_of_which_dataset_was_read_is_in_the_recipe_and_with_the_sae(
    tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Dataset.from_dict({"ids": rows_of(tiny_world), "text": ["no"] * 300})
    other = rows.select(range(299, -1, -1))
    DatasetDict({"train": rows, "other": other}).save_to_disk("saved")
    named = ("--dataset_path", "saved", "--text_column", "ids")
    train(*RUN, *named, "--dataset_split", "other[:200]", "--output_path", "run")
    recipe = yaml.safe_load(Path("run", "run.yaml").read_text())
    metadata = json.loads(Path("run", "cfg.json").read_text())["metadata"]
    for known in (recipe, metadata):
        assert (known["dataset_split"], known["text_column"]) == ("other[:200]", "ids")
    assert "dataset_config" not in metadata
    train("--recipe", "run/run.yaml", "--output_path", "again")
    assert weights("again") == weights("run")
    train(*RUN, *named, "--output_path", "first")
    assert weights("first") != weights("run")
    made = json.loads(Path("run", "cfg.json").read_text())
    assert made["metadata"]["dataset_path"] == str(tmp_path / "saved")


def test_training_in_float16_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for model in ("sae-plugins-world", "synthetic:toy"):
        train("--model_name", model, "--dtype", "float16", code=2)
        said = capsys.readouterr()
        assert "--dtype float16: an SAE cannot be trained in it, since Adam's epsilon" in said.err
        assert "give --dtype float32, or bfloat16" in said.err
        assert "loading" not in said.out


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_dataset_of_which_all_is_held_out_is_refused(
    streaming: str, tiny_world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (json.dumps({"tokens": row}) + "\n" for row in rows_of(tiny_world)[:7])
    Path("text.jsonl").write_text("".join(lines))
    train(*RUN, "--dataset_path", "text.jsonl", "--streaming", streaming, code=2)
    assert (
        "text.jsonl is too small: scoring the SAE on 64 tokens takes 128 with a batch of prompts, "
        "and its 7 documents have 112; give more text, or lower --heldout_tokens; 0 scores nothing"
    ) in capsys.readouterr().err


def test_a_stream_that_is_less_than_a_batch_of_prompts_is_trained_on_and_that_is_said(
    tiny_world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (json.dumps({"tokens": row}) + "\n" for row in rows_of(tiny_world)[:3])
    Path("text.jsonl").write_text("".join(lines))
    train(*RUN, "--dataset_path", "text.jsonl", "--heldout_tokens", "0", "--output_path", "run")
    assert "text.jsonl ends after 48 tokens (3 prompts), and the run needs up to" in caplog.text
