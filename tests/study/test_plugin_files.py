"""Plugins that a study tries from files: what others get to see of them, and what is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sae_plugins.base.errors import PluginError
from sae_plugins.study.files import load
from sae_plugins.study.plugin_files import kept, shared
from sae_plugins.study.spec import Study, as_yaml

IDEA = "import {helper}\nfrom sae_plugins import Plugin\nclass Idea(Plugin):\n    name = 'idea'\n"


def named(study: Study) -> dict[str, list[str]]:
    found = {name: arm.train["plugin"] for name, arm in study.arms.items() if arm.train}
    on_toy = study.arms["b"].models["toy"].train
    return {**found, "b on toy": on_toy["plugin"]}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose two arms try different files of one name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "idea.py").write_text(IDEA.format(helper=f"of_{folder}"))
        (tmp_path / folder / f"of_{folder}.py").write_text("")
    arms = {
        "l1": {},
        "a": {"train": {"plugin": "a/idea.py"}},
        "b": {
            "train": {"plugin": [f"{tmp_path}/b/idea.py:Idea", "reorder"]},
            "models": {"toy": {"train": {"plugin": ["b/idea.py:Idea"]}}},
        },
    }
    models = {"toy": {"train": {"model_name": "synthetic:toy"}, "suites": {}}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"reference": "l1", "models": models, "arms": arms}))
    return file


def test_others_see_names_and_hashes_and_can_run_the_copies(file: Path, tmp_path: Path) -> None:
    told, files = shared(load(str(file)))
    assert str(tmp_path) not in told.model_dump_json() + as_yaml(told)
    (a,) = named(told)["a"]
    b, reorder = named(told)["b"]
    assert reorder == "reorder"
    assert named(told)["b on toy"] == [b]
    assert a != b
    for name, folder in ((a, "a"), (b, "b")):
        place = name.removeprefix("plugin_files/").removesuffix("/idea.py:Idea")
        assert len(place) == 8
        assert files[f"{place}/idea.py"] == (tmp_path / folder / "idea.py").read_bytes()
        assert files[f"{place}/of_{folder}.py"] == b""
    assert len(files) == 4

    out = tmp_path / "out"
    assert kept(load(str(file)), out)[0] == told
    (out / "as_run.yaml").write_text(as_yaml(told))
    again = load(str(out / "as_run.yaml"))
    assert shared(again) == (told, files)  # another place is no other study


def test_what_runs_is_the_copy_of_what_was_loaded(file: Path, tmp_path: Path) -> None:
    _, study = kept(load(str(file)), tmp_path / "out")
    told = shared(load(str(file)))
    (tmp_path / "a" / "idea.py").write_text("raise RuntimeError")
    assert shared(study) == told
    with pytest.raises(PluginError, match="RuntimeError"):
        shared(load(str(file)))
