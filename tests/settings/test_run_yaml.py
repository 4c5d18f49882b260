"""What a command line says that goes on with a run, against what the run's `run.yaml` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.settings.run_yaml import differences, of_resumed
from sae_plugins.settings.settle import settle


def begun(shards: int | None, folder: Path) -> Path:
    """The `run.yaml` of a run with so many data shards, which says nothing of a single one."""
    values = settle({}).as_recipe({})
    recipe = folder / "unfinished" / "run.yaml"
    recipe.parent.mkdir()
    said = {} if shards is None else {"data_shards": shards}
    recipe.write_text(yaml.safe_dump({"description": "A run.", **values, **said}))
    return recipe


@pytest.mark.parametrize(
    ("shards", "given", "said"),
    [
        (8, {"data_shards": 1}, "--data_shards 1, it began with 8"),
        (8, {"data_shards": 4}, "--data_shards 4, it began with 8"),
        (None, {"data_shards": 8}, "--data_shards 8, it began with 1"),
        (8, {"data_shards": 8}, None),
        (8, {}, None),
        (None, {"data_shards": 1}, None),
        (None, {}, None),
    ],
)
def test_data_shards_that_are_given_are_those_of_the_run(
    shards: int | None, given: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    """By --go_on and --resume alike."""
    recipe = begun(shards, tmp_path)
    assert differences(settle(given), recipe) == ([] if said is None else [said])
    if said is None:
        of_resumed(given, tmp_path)
        return
    with pytest.raises(SaePluginsError, match=said):
        of_resumed(given, tmp_path)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("text_seed", 3),
        ("dataset_split", "train[:90%]"),
        ("text_column", "words"),
        ("hook_head_index", 1),
    ],
)
def test_a_flag_that_is_no_longer_given_makes_another_run(
    flag: str, value: Any, tmp_path: Path
) -> None:
    """--go_on starts nothing in the folder of a run that read another text, or another hook."""
    given = {"dataset_path": "text"}
    began = settle({**given, flag: value}).as_recipe({})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"description": "A run.", **began}))
    assert differences(settle({**given, flag: value}), tmp_path / "run.yaml") == []
    found = differences(settle(given), tmp_path / "run.yaml")
    assert found == [f"--{flag} none, it began with {value}"]
