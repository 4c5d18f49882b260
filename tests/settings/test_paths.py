"""Paths are whole when a run starts, and names on the Hub stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_plugins.settings.paths import placed
from sae_plugins.settings.settle import settle


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def notes(**values: Any) -> list[str]:
    said: list[str] = []
    placed(values, said)
    return said


@pytest.mark.parametrize(
    "name", ["checkpoint_path", "cached_activations_path", "resume_from_checkpoint"]
)
def test_folders_are_whole_whether_or_not_they_are_there(name: str, tmp_path: Path) -> None:
    whole = str(tmp_path / "a")
    for spelling in ("a", "./a", "b/../a", whole):
        assert placed({name: spelling}) == {name: whole}
    assert placed({name: "~/a"}) == {name: str(tmp_path / "home" / "a")}
    assert placed({name: None}) == {name: None}


@pytest.mark.parametrize("name", ["dataset_path", "from_pretrained_path", "model_name"])
def test_a_name_on_the_hub_is_a_path_only_where_a_folder_is(name: str, tmp_path: Path) -> None:
    for source in ("me/it", "it", "me/saes:x"):
        assert placed({name: source}) == {name: source}
    for source in ("me/it", "it"):
        Path(source).mkdir(parents=True)
        Path(source, "config.json").touch()
        whole = str(tmp_path / source)
        assert placed({name: source}) == placed({name: f"./{source}"}) == {name: whole}
    assert notes(**{name: "me/it"}) == [f"--{name} me/it is {tmp_path}/me/it, not me/it of the Hub"]
    for unmistakable in ("it", "./me/it", str(tmp_path / "me" / "it")):
        assert notes(**{name: unmistakable}) == []


def test_a_folder_that_holds_no_model_is_none(tmp_path: Path) -> None:
    Path("gpt2").mkdir()
    assert placed({"model_name": "gpt2"}) == {"model_name": "gpt2"}
    assert placed({"dataset_path": "gpt2"}) == {"dataset_path": str(tmp_path / "gpt2")}


def test_a_path_that_is_meant_is_one_though_nothing_is_there(tmp_path: Path) -> None:
    assert placed({"dataset_path": "./no"}) == {"dataset_path": str(tmp_path / "no")}
    assert placed({"dataset_path": "x" * 300}) == {"dataset_path": "x" * 300}


def test_paths_among_a_models_arguments_are_whole(tmp_path: Path) -> None:
    found = placed({"model_from_pretrained_kwargs": {"cache_dir": "~/c", "revision": "c"}})
    assert found["model_from_pretrained_kwargs"] == {
        "cache_dir": str(tmp_path / "home" / "c"),
        "revision": "c",
    }


def test_flags_and_recipes_have_whole_paths_and_say_which_were_taken(tmp_path: Path) -> None:
    Path("me/it").mkdir(parents=True)
    Path("mine.yaml").write_text("dataset_path: me/it\n")
    for flags in ({"dataset_path": "me/it"}, {"recipe": "mine.yaml"}):
        settings = settle(flags)
        assert settings.get("dataset_path") == str(tmp_path / "me" / "it")
        assert any("not me/it of the Hub" in note for note in settings.notes)
