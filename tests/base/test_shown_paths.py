"""What is published names no folder of this machine, and says as much as it can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sae_plugins.base.shown_paths import from_here, rootless, without_places


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", "/home/jane")


def test_a_path_begins_here_or_is_its_last_part(tmp_path: Path) -> None:
    inside = tmp_path / "here/runs/a"
    for path in (inside, Path("runs/a"), Path("../here/runs/a")):
        assert from_here(path) == "runs/a"
    assert from_here(tmp_path / "there/a b") == "a b"
    assert from_here("~/texts") == "texts"
    told = rootless({"output_path": str(inside), "checkpoint_path": None, "k": 1}, "output_path")
    assert told == {"output_path": "runs/a", "checkpoint_path": None, "k": 1}


TEXTS = {
    "/data/acme/text.jsonl": "text.jsonl",
    "/data/acme corp/my text.jsonl": "my text.jsonl",
    "/home/jane/text.jsonl": "~/text.jsonl",
    "{here}/data/x.jsonl": "data/x.jsonl",
    "{here}/data of mine/x.jsonl": "data of mine/x.jsonl",
    "the dataset in /data/acme/a.jsonl changed": "the dataset in a.jsonl changed",
    "/data/acme/a.jsonl: no such file": "a.jsonl: no such file",
    "/data/a/b and /data/c/d differ": "b and d differ",
}
SAME = [
    *("google/gemma-2-2b", "https://host.org/a/b", "hf://datasets/a/b", "../there/a", "./a/b"),
    *("losses/l1", "either / or", "a/b/c", "~/a/b", "//", "blocks.*/x/y", "input/output/error"),
]


@pytest.mark.parametrize("kind", [".json", ".yaml", ""])
def test_texts_of_any_kind(kind: str, tmp_path: Path) -> None:
    wanted = {given.format(here=Path.cwd()): told for given, told in TEXTS.items()}
    wanted |= {text: text for text in SAME}
    if kind == "":  # where nothing tells the end of a path with spaces
        wanted = {given: told for given, told in wanted.items() if "corp" not in given}
    given, told = [*wanted], [*wanted.values()]
    if kind == ".json":
        text = json.dumps({"a": given, "/data/key/k": {"é": "/x/y/é"}}, indent=1)
        read = json.loads(without_places(text, kind))
        assert read == {"a": told, "/data/key/k": {"é": "é"}}  # keys are names
    elif kind == ".yaml":
        text = yaml.safe_dump({"list": given, "one": given[1]}, width=1000)
        assert yaml.safe_load(without_places(text, kind)) == {"list": told, "one": told[1]}
    else:
        assert [without_places(text) for text in given] == told
    assert without_places(without_places("\n".join(given))) == without_places("\n".join(given))
