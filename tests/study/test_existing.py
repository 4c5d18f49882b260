"""SAEs that exist, as arms of a study: what its file may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.study.files import load
from sae_plugins.study.plan import plan
from sae_plugins.study.prospects import prospects
from sae_plugins.study.spec import Study

TOY = {
    "train": {"model_name": "synthetic:toy", "training_tokens": 9600},
    "sparsity": {"l1_coefficient": [0.3, 1]},
    "suites": {"ground-truth": {}},
}
HUB = "gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82"


def study(theirs: Any, **contents: Any) -> Study:
    arms = {"l1": {}, "theirs": theirs}
    models = {"toy": TOY}
    whole = {"reference": "l1", "models": models, "arms": arms, "seeds": [3, 1, 2], **contents}
    Path("mine.yaml").write_text(yaml.safe_dump(whole))
    return load("mine.yaml")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_arm_is_its_saes_and_nothing_is_trained_of_it(tmp_path: Path) -> None:
    Path("sae").mkdir()
    Path("other").mkdir()
    saes = ["sae", {"sae": "other", "seed": 1}, {"sae": HUB, "seed": 1, "l0": 82}]
    cells = plan(study({"saes": saes}, seeds=[3, 1]), lambda _: None).cells
    own = [cell for cell in cells if cell.arm == "theirs"]
    assert [(cell.seed, cell.sparsity) for cell in own] == [(3, ""), (1, ""), (1, "L0=82")]
    assert [cell.source for cell in own] == [*map(str, (tmp_path / "sae", tmp_path / "other")), HUB]
    assert len({cell.folder for cell in own}) == 3
    assert {cell.source for cell in cells if cell.arm == "l1"} == {None}


def test_where_l0s_are_wanted_it_has_no_pilots() -> None:
    toy = TOY | {"target_l0": [4, 8]}
    known = plan(study({"saes": ["a"]}, models={"toy": toy}), lambda _: None)
    assert {cell.arm for cell in known.pilots} == {"l1"}
    assert [cell.arm for cell in known.cells] == ["theirs"]


def test_on_other_models_than_that_of_its_saes_the_arm_is_not_there() -> None:
    found = study({"models": {"other": {"saes": ["a"]}}}, models={"toy": TOY, "other": TOY})
    cells = plan(found, lambda _: None).cells
    assert {cell.model for cell in cells if cell.arm == "theirs"} == {"other"}
    assert found.common_seeds("toy") == {}


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (
            {"saes": [{"sae": "a", "seed": 3}, {"sae": "a", "seed": 4}]},
            "arms.theirs.saes: a is named for the seeds 3 and 4, and one SAE tells nothing",
        ),
        (
            {"saes": ["a", "b"]},
            "arms.theirs.saes: a and b both have seed 3 and no l0; give them seeds or l0s that",
        ),
        (
            {"saes": [{"sae": "a", "seed": 1, "l0": 8}, {"sae": "a", "seed": 1, "l0": 8.0}]},
            "a and a both have seed 1 and an l0 of 8;",
        ),
        (
            {"saes": [{"sae": "a", "seed": 0}]},
            "a has seed 0, and the seeds of the study are 3, 1, 2; give it one of these, or add",
        ),
        (
            {"saes": ["a"], "train": {"lr": 1}},
            "arms.theirs.saes: train would do nothing to SAEs that exist; leave it out",
        ),
        ({"saes": ["a"], "untrained": True}, "untrained would do nothing"),
        (
            {"saes": ["a"], "models": {"toy": {"sparsity": {"k": [1]}}}},
            "arms.theirs.models.toy.saes: sparsity would do nothing",
        ),
        ({"saes": [{"sae": "a", "sed": 1}]}, "there is no key arms.theirs.saes.0.sed: did you"),
        ({"saes": [{"seed": 1}]}, "arms.theirs.saes.0.sae: it is needed"),
        ({"saes": [{"sae": "a", "l0": 0}]}, "arms.theirs.saes.0.l0 0: it must be greater than 0"),
        ({"saes": "a"}, "arms.theirs.saes 'a': it must be a list"),
    ],
)
def test_what_is_wrong_is_said(theirs: Any, message: str) -> None:
    with pytest.raises(SaePluginsError) as error:
        study(theirs)
    assert message in str(error.value)


def test_one_seed_has_no_verdict_which_is_said_before_and_costs_the_others_nothing() -> None:
    one = study({"saes": ["a"]}, arms={"l1": {}, "theirs": {"saes": ["a"]}, "lr": {}})
    warnings = plan(one, lambda _: None).warnings
    assert warnings == [
        "toy, theirs: one seed in common with l1: no verdict; its scores are in the report"
    ]
    assert {found.comparisons for found in prospects(one, {})} == {5}
    two = study({"saes": [{"sae": "a", "seed": 1}, {"sae": "b", "seed": 2}]})
    assert plan(two, lambda _: None).warnings == []
    assert {round(found.effect) for found in prospects(two, {})} == {58}, "two seeds of three"
