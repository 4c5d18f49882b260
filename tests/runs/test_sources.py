"""Where data and models come from: folders, and the Hub at a commit that is looked up once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import LoopbackHub

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.base.hub import commit_of
from sae_plugins.runs.language_model import LanguageModelSetup
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.sources import commits, made_from
from sae_plugins.settings.settle import settle

SHA = "0123456789abcdef0123456789abcdef01234567"
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def hub(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackHub:
    """A Hub with a dataset, a model, and a branch of the dataset."""
    loopback_hub.here(monkeypatch, None)
    for kind, name in (("datasets", "me/text"), ("models", "me/model")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "file").write_text(name)
        loopback_hub.add(name, tmp_path / kind, kind)
    (tmp_path / "datasets" / "file").write_text("on a branch")
    loopback_hub.add("me/text", tmp_path / "datasets", "datasets", "v2")
    return loopback_hub


def heads(hub: LoopbackHub, kind: str, name: str) -> dict[str, str]:
    return hub.repositories[f"{kind}/{name}"].branches


FLAGS = {"dataset_path": "me/text", "model_class_name": "AutoModelForCausalLM"}


def test_what_comes_from_the_hub_has_commits(hub: LoopbackHub) -> None:
    data, model = heads(hub, "datasets", "me/text"), heads(hub, "models", "me/model")
    found = commits("me/model", FLAGS)
    assert found == {"dataset_revision": data["main"], "model_revision": model["main"]}
    assert commits("me/model", {**FLAGS, **found}) == found
    other = commits("me/model", {**FLAGS, "dataset_revision": "v2"})
    assert other["dataset_revision"] == data["v2"] != data["main"]
    arguments = {"model_from_pretrained_kwargs": {"revision": "nowhere"}}
    assert "model_revision" not in commits("me/model", {**FLAGS, **arguments})


def test_a_commit_is_asked_for_by_nobody_who_knows_it(hub: LoopbackHub) -> None:
    hub.requests.clear()
    assert commit_of("me/text", "dataset", SHA) == SHA
    assert hub.requests == []


def test_without_the_hub_the_cache_says_which_commit_it_holds(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants, hf_hub_download

    hf_hub_download("me/model", "file", endpoint=hub.endpoint)
    kept = heads(hub, "models", "me/model")["main"]
    hub.fail("", 503)
    assert commit_of("me/model", "model") == kept
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING):
        assert commits("me/model", FLAGS) == {"model_revision": kept}
    assert "at which commit me/text is on the Hub cannot be found out" in caplog.text


@pytest.mark.parametrize("name", [world.NAME, "folder"])
def test_what_is_here_has_no_commits(name: str, hub: LoopbackHub, tmp_path: Path) -> None:
    model = name if name == world.NAME else str(tmp_path)
    assert commits(model, {}) == {}
    assert commits(model, {"dataset_path": str(tmp_path / "datasets")}) == {}
    for flag in ("dataset_revision", "model_revision"):
        with pytest.raises(PluginError, match=f"--{flag} v2: .* leave it out"):
            commits(model, {"dataset_path": str(tmp_path / "datasets"), flag: "v2"})


def test_sources_are_facts_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"1")
    flags = {
        "dataset_path": "me/text", "dataset_revision": SHA, "from_pretrained_path": "me/saes:x",
        "cached_activations_path": str(tmp_path),
    }  # fmt: skip
    found = made_from(str(tmp_path), flags)
    assert list(found["model"]["files"]) == ["weights.safetensors"]
    assert found["dataset"] == {"at": "me/text", "commit": SHA}
    assert found["from_pretrained_path"] is None
    assert "cached_activations_path" not in found
    used = made_from("gpt2", {**flags, "use_cached_activations": True})
    assert used["cached_activations_path"] == found["model"]
    assert used["model"] is None
    (tmp_path / "weights.safetensors").write_bytes(b"2")
    assert made_from(str(tmp_path), {})["model"] != found["model"]
    assert made_from(world.NAME, {}).keys() == made_from("synthetic:toy", {}).keys() == {"world"}


def test_a_recipes_revision_is_not_that_of_another_repository(tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text(f"dataset_path: me/text\ndataset_revision: {SHA}\nmodel_name: gpt2\n")

    def revision(**flags: Any) -> Any:
        return settle({"recipe": str(recipe), **flags}).get("dataset_revision")

    assert revision() == SHA
    assert revision(dataset_path="me/text") == SHA
    assert revision(dataset_path="me/other") is None
    assert revision(dataset_path="me/other", dataset_revision="v2") == "v2"


TRAIN = """
import json
from pathlib import Path
from sae_plugins.entrypoints.main import main
assert main(["train", "--dataset_path", "me/text", "--training_tokens", "128",
             "--train_batch_size_tokens", "64", "--context_size", "16", "--d_sae", "32",
             "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--heldout_tokens",
             "0", "--n_batches_for_norm_estimate", "1", "--checkpoint_every", "0", *{more}]) == 0
"""


@pytest.mark.ci
def test_a_run_says_which_commit_it_read_and_reads_it_again(
    tiny_world: Any,
    sketched: None,
    loopback_hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    text = tiny_world.text("train")["tokens"]

    def add(rows: list[list[int]]) -> str:
        folder = tmp_path / "rows"
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps({"tokens": list(row)}) + "\n" for row in rows)
        (folder / "train.jsonl").write_text(lines)
        return loopback_hub.add("me/text", folder)

    def train(*more: str) -> tuple[str, bytes]:
        loopback_hub.run_here(TRAIN.format(more=list(more)), monkeypatch)
        folder = Path(more[more.index("--output_path") + 1])
        recipe = yaml.safe_load((folder / "run.yaml").read_text())
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        assert metadata["dataset_revision"] == recipe["dataset_revision"]
        assert metadata["model_name"] == world.NAME
        assert "model_revision" not in metadata
        return recipe["dataset_revision"], (folder / "sae_weights.safetensors").read_bytes()

    first = add(text)
    sha, weights = train("--output_path", "first")
    assert sha == first
    second = add([row[::-1] for row in text])
    assert train("--output_path", "again", "--recipe", "first/run.yaml") == (first, weights)
    sha, other = train("--output_path", "second")
    assert sha == second
    assert other != weights
    assert train("--output_path", "old", "--dataset_revision", first) == (first, weights)


@pytest.mark.parametrize("source", ["./gone.jsonl", "/gone", "dead", "https://me:pass@the.web/a"])
def test_nobody_asks_the_hub_for_a_path_or_an_address(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dead").symlink_to("gone")
    monkeypatch.setattr("sae_plugins.runs.sources.commit_of", None)
    assert commits(world.NAME, {"dataset_path": source}) == {}
    assert not caplog.text


def test_the_embedded_worlds_text_is_known_by_its_files() -> None:
    """A run that goes on would else say that its dataset could not be compared."""
    setup = object.__new__(LanguageModelSetup)
    setup.settings = SAELensSettings(world.NAME)
    assert setup.made_from().keys() == {"world", "dataset"}
    assert all(setup.made_from().values())
