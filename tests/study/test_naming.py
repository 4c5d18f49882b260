"""Whether primary comparisons were named before their outcome could be known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.study.naming import NAMED, remember, warnings
from sae_plugins.study.spec import Study


def study(**primary: list[str]) -> Study:
    models = {"toy": {"suites": {}}}
    return Study(reference="l1", models=models, arms={"l1": {}, "a": {}}, primary=primary)  # type: ignore[arg-type]


def test_comparisons_named_before_the_first_result_are_primary(tmp_path: Path) -> None:
    assert list(warnings(study(a=[]), tmp_path)) == []
    remember(study(a=[]), tmp_path, results=False)
    remember(study(a=[]), tmp_path, results=True)  # it goes on
    assert list(warnings(study(a=[]), tmp_path)) == []
    assert len(json.loads((tmp_path / NAMED).read_text())) == 1


def test_comparisons_named_after_a_result_are_exploratory_for_good(tmp_path: Path) -> None:
    remember(study(), tmp_path, results=False)
    assert not (tmp_path / NAMED).exists()
    remember(study(a=["ground-truth/mcc"]), tmp_path, results=False)
    assert list(warnings(study(a=[]), tmp_path)) == [
        "the primary comparisons are not those that the study was run with: other primary"
    ]
    remember(study(a=[]), tmp_path, results=True)
    remember(study(a=[]), tmp_path, results=True)
    (said,) = warnings(study(a=[]), tmp_path)
    assert "when there were results already" in said
    assert list(warnings(study(), tmp_path)) == [], "there are none"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"compare": ["ground-truth/mcc"]}, "compare"),
        ({"margins": {"ground-truth/mcc": 1}}, "margins"),
    ],
)
def test_metrics_or_margins_of_another_choice_are_named(
    change: dict[str, Any], key: str, tmp_path: Path
) -> None:
    remember(study(a=[]), tmp_path, results=False)
    other = study(a=[]).model_copy(update=change)
    (said,) = warnings(other, tmp_path)
    assert said.endswith(f"other {key}")
    remember(other, tmp_path, results=True)
    (said,) = warnings(other, tmp_path)
    assert "take them for exploratory ones" in said
