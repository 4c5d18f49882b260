"""What a command names on this machine and is not there is said before anything slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.places import check_places


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data", "texts.jsonl").write_text('{"text": "a"}\n')
    Path("data", "codes.pkl").write_text("x")


def refused(**values: Any) -> str:
    with pytest.raises(PluginError) as caught:
        check_places(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("./no", "no: there is no such file or folder"),
        ("no.jsonl", "no.jsonl: there is no such file or folder"),
        ("texts/of/mine", "texts/of/mine: there is no such file or folder"),
        (
            "data/text.jsonl",
            "data/text.jsonl: there is no such file or folder; did you mean 'data/texts.jsonl'?",
        ),
        ("data/codes.pkl", "data/codes.pkl: loading a .pkl file could run code"),
        ("https://the.web/a/b.jsonl", "https://the.web/a/b.jsonl is an address"),
    ],
)
def test_datasets_that_can_be_none(path: str, said: str) -> None:
    assert refused(dataset_path=path).startswith(f"--dataset_path {said}")


@pytest.mark.parametrize("path", ["me/text", "imdb", "me/text.jsonl", "data/texts.jsonl"])
def test_names_of_the_hub_and_files_that_are_there_pass(path: str) -> None:
    check_places({"dataset_path": path, "model_name": "gpt2"})


def test_models_and_folders_to_begin_with(tmp_path: Path) -> None:
    assert refused(model_name="./model") == "--model_name ./model: there is no such folder"
    assert refused(model_name="runs/of/mine").startswith("--model_name runs/of/mine: there is no")
    for name in ("resume_from_checkpoint", "from_pretrained_path"):
        assert refused(**{name: "dat"}) == f"--{name} dat is no folder; did you mean 'data'?"
    cached = {"use_cached_activations": True, "cached_activations_path": "nowhere"}
    assert "nowhere is no folder; name another" in refused(**cached)
    check_places({"cached_activations_path": "nowhere"})
    check_places({"from_pretrained_path": "me/saes:blocks.1"})


def test_all_is_said_at_once() -> None:
    said = refused(dataset_path="./no", from_pretrained_path="nowhere")
    assert "--dataset_path no" in said
    assert "--from_pretrained_path nowhere" in said


STUDY = """\
reference: l1
models:
  world:
    train: {dataset_path: data/text.jsonl}
    sparsity: {l1_coefficient: [1]}
    suites: {core: {}}
arms:
  l1: {kind: baseline}
  reordered: {train: {plugin: [reorder]}}
seeds: [1, 2]
"""


LINES = [
    "train --dataset_path data/text.jsonl --trainin_tokens 5",
    "train --recipe recipe.yaml",
    "features run --dataset_path data/text.jsonl --tokens 0",
    "evaluate run --data data/text.jsonl --suite core",
]


def said_by(*lines: str) -> list[str]:
    """What commands say, one after the other in a process that imports no SAELens before each."""
    Path("mine.yaml").write_text(STUDY)
    Path("recipe.yaml").write_text("dataset_path: data/text.jsonl\n")
    Path("run").mkdir()
    code = (
        "import sys\nfrom sae_plugins.entrypoints.main import main\n"
        f"for line in {lines!r}:\n"
        "    print('-', 'sae_lens' in sys.modules, main(line.split()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, rest = done.stderr.split("- False 2\n")
    assert (len(said), rest) == (len(lines), ""), done.stderr
    return said


def test_commands_say_so_before_they_import_sae_lens() -> None:
    said = said_by(*LINES)
    for each in said[:3]:
        assert "data/text.jsonl: there is no such file or folder; did you mean" in each
    assert "--trainin_tokens" in said[0]
    assert "--tokens 0" in said[2]
    assert "--data data/text.jsonl: neither 'world' nor 'hub' nor a folder" in said[3]


@pytest.mark.slow
def test_a_study_says_so() -> None:
    """Planning it imports SAELens."""
    (said,) = said_by("study run mine.yaml")
    assert "data/text.jsonl: there is no such file or folder; did you mean" in said
