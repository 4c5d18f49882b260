"""What a dry run says would be downloaded, and what it reads without a copy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import Dataset

from sae_plugins.base import hub
from sae_plugins.runs.downloads import copies_in, downloads
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.texts.loading import copy_of, load_rows

SHA = "a" * 40
FILES = {
    "big/model": {
        "config.json": 10,
        "model-1.safetensors": 3000,
        "model-2.safetensors": 4000,
        "pytorch_model.bin": 7000,
        "onnx/model.safetensors": 9000,
    },
    "old/model": {"config.json": 10, "pytorch_model.bin": 7000},
    "some/texts": {"README.md": 5, ".gitattributes": 5, "data/train.parquet": 600},
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Hub with these files, and an empty cache of it."""

    def repo_info(repo: str, **_: Any) -> Any:
        files = [SimpleNamespace(rfilename=name, size=size) for name, size in FILES[repo].items()]
        return SimpleNamespace(sha=SHA, siblings=files)

    monkeypatch.setattr(hub, "api", lambda: SimpleNamespace(repo_info=repo_info))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def settings(model: str, **runner: Any) -> SAELensSettings:
    return SAELensSettings(model, runner={"model_class_name": "AutoModelForCausalLM", **runner})


def keep(cache: Path, folder: str, name: str) -> None:
    file = cache / folder / "snapshots" / SHA / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


@pytest.mark.parametrize("model", ["big/model", "old/model"])
def test_one_kind_of_weights_counts(model: str):
    assert downloads(settings(model)) == {f"--model_name {model}": 7000}


def test_what_is_in_the_cache_does_not(cache: Path):
    keep(cache, "models--big--model", "model-1.safetensors")
    assert downloads(settings("big/model")) == {"--model_name big/model": 4000}
    keep(cache, "models--big--model", "model-2.safetensors")
    assert downloads(settings("big/model")) == {}


def test_a_dataset_counts_unless_it_is_streamed(cache: Path):
    given = settings("old/model", dataset_path="some/texts", streaming=False)
    keep(cache, "models--old--model", "pytorch_model.bin")
    assert downloads(given) == {"--dataset_path some/texts": 600}
    assert downloads(settings("old/model", dataset_path="some/texts")) == {}


def test_a_hub_that_does_not_answer_is_for_the_loader_to_name():
    assert downloads(settings("no/model")) == {}


@pytest.mark.parametrize("model", ["sae-plugins-world", "synthetic:toy"])
def test_what_is_no_repository(model: str):
    assert downloads(SAELensSettings(model)) == {}


def test_a_copy_of_a_dataset_goes_elsewhere_unless_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    own = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", own)
    Path("files").mkdir()
    Path("files/texts.jsonl").write_text('{"text": "a"}\n')
    given = settings("old/model", dataset_path="files", streaming=False)
    with copies_in(tmp_path / "scratch", given):
        assert load_rows(given)["text"] == ["a"]
    assert not own.exists()
    assert any(Path("scratch/datasets").rglob("*.arrow"))
    assert load_rows(given)["text"] == ["a"]
    before = sorted(own.rglob("*"))
    with copies_in(tmp_path / "other", given):
        assert load_rows(given)["text"] == ["a"]
    assert sorted(own.rglob("*")) == before
    assert not [*Path("other").rglob("*.arrow")]
    assert own == datasets.config.HF_DATASETS_CACHE


def test_what_is_streamed_or_saved_has_no_copy():
    Dataset.from_dict({"text": ["a"]}).save_to_disk("saved")
    assert copy_of(settings("old/model", dataset_path="saved", streaming=False)) is None
    assert copy_of(settings("old/model", dataset_path="some/texts")) is None
    assert copy_of(settings("old/model", dataset_path="./not/there", streaming=False)) is None
