"""`train --resume` after something has changed that the run was made from: refused, or accepted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from faults import interrupted

from sae_plugins import world
from sae_plugins.base import identity
from sae_plugins.base.code import code
from sae_plugins.entrypoints import train
from sae_plugins.entrypoints.main import main
from sae_plugins.resume.files import files as checkpoints_in
from sae_plugins.resume.state import read_state, write_state
from sae_plugins.settings.settle import settle

RUN = [
    *("--dataset_path", "text", "--training_tokens", "640", "--train_batch_size_tokens", "64"),
    *("--context_size", "16", "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8"),
    *("--d_sae", "32", "--heldout_tokens", "0", "--n_batches_for_norm_estimate", "2"),
    *("--plugin", "reorder", "--reorder.start", "3", "--reorder.interval", "4"),
    *("--recorder.every", "1", "--checkpoint_every", "2", "--output_path", "run"),
]
"""10 steps of 4 prompts out of 300."""
RESUME = ("--resume", "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to keep a run in."""
    return tmp_path_factory.mktemp("made") / "folder"


@pytest.fixture(autouse=True)
def unfinished(tiny_world: Any, sketched: None, made: Path) -> Path:
    """A run on text in a folder that was interrupted after six steps."""
    if not made.exists():
        tiny_world.text("train").save_to_disk("text")
        with interrupted(6):
            assert main(["train", *RUN]) == 130
        shutil.copytree(".", made)
    shutil.copytree(made, ".", dirs_exist_ok=True)
    recipe = Path("run", "unfinished", "run.yaml")
    text = re.sub("(?<=dataset_path: ).*", str(Path("text").absolute()), recipe.read_text())
    recipe.write_text(text)  # it names the place where the run began
    return recipe.parent


def edit(*places: int) -> None:
    """Other tokens at some places of the text."""
    text = Dataset.load_from_disk("text", keep_in_memory=True)
    rows = [list(row) for row in text["tokens"]]
    for place in places:
        rows[place] = rows[place][::-1]
    Dataset.from_dict({"tokens": rows}).save_to_disk("text")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused resumption says."""
    capsys.readouterr()
    assert main(["train", *RESUME]) == 2
    return capsys.readouterr().err


def test_a_change_is_refused_and_named_and_what_was_there_goes_on(
    tiny_world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(*range(300))  # all of it, back and forth
    assert re.search(r"the dataset in \S+/text changed: \d files? \(data-00000", said(capsys))
    edit(*range(300))

    def model(device: str = "cpu", dtype: str = "float32") -> Any:
        made = tiny_world.model(device, dtype)
        with torch.no_grad():
            made.W_E[3, 5] += 1e-6
        return made

    with monkeypatch.context() as patched:
        patched.setattr(world, "load_hooked_transformer", model)
        assert "\n  the language model changed\n" in said(capsys)

    def edited(patterns: Any, classes: Any = ()) -> dict[str, str | None]:
        found = code(patterns, classes)
        return {n: "another" if n.endswith("/reorder.py") else text for n, text in found.items()}

    with monkeypatch.context() as patched:
        patched.setattr(identity, "code", edited)
        text = said(capsys)
    assert "\n  mechanisms/reorder.py changed\n" in text
    assert "--accept_changes" in text
    assert main(["train", *RESUME]) == 0


def test_text_that_is_edited_further_on_than_was_read_is_a_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(299)
    assert "the dataset in" in said(capsys)


@pytest.mark.parametrize(
    "places",
    [
        pytest.param((299,), id="further on", marks=pytest.mark.ci),
        pytest.param(tuple(range(299)), id="read"),
    ],
)
def test_an_accepted_change_is_noted_with_the_sae(
    places: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    edit(*places)
    assert main(["train", *RESUME, "--accept_changes"]) == 0
    assert "the run goes on with changes:\n  the dataset in" in caplog.text
    metadata = json.loads(Path("run", "cfg.json").read_text())["metadata"]
    (accepted,) = metadata["sae_plugins"]["accepted_changes"]
    assert accepted["step"] == 6
    assert accepted["changes"][0].startswith("the dataset in")
    assert [plugin["name"] for plugin in metadata["sae_plugins"]["plugins"]] == ["reorder"]
    recipe = yaml.safe_load(Path("run", "run.yaml").read_text())
    assert recipe["accepted_changes"] == [accepted]
    notes = settle({"recipe": "run/run.yaml"}).notes
    assert "run.yaml went on after something that it was made from had changed" in notes[0]


def test_a_checkpoint_of_an_earlier_version_goes_on_and_what_is_unknown_is_said(
    unfinished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in checkpoints_in(unfinished / "resume"):
        tree = read_state(path)
        del tree["made_from"]
        tree["facts"][0]["data"] = None
        tree["stream_facts"]["model"] = "a sample of its weights"
        del tree["versions"]["transformer-lens"]
        write_state(path, tree)
    edit(299)
    assert main(["train", *RESUME]) == 0
    unknown = "the code, the embedded world, the dataset and what is read of the dataset"
    assert f"{unknown} could not be compared with" in caplog.text
    assert "the language model could not be compared with" in caplog.text


def test_an_sae_that_has_only_to_be_scored_is_scored_on_the_data_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "_score", killed)
        assert main(["train", *RESUME]) == 130
    edit(0)
    assert "trained.json was made from has changed" in (text := said(capsys))
    assert "the dataset in" in text
    edit(0)
    assert main(["train", *RESUME]) == 0


def test_to_accept_changes_belongs_to_going_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *RUN[:-1], "other", "--accept_changes"]) == 2
    assert "--accept_changes is for --resume" in capsys.readouterr().err
