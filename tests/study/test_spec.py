"""What a study.yaml may say, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.study.files import load
from sae_plugins.study.spec import as_yaml

SMALLEST: dict[str, Any] = {
    "reference": "l1",
    "models": {"toy": {"train": {"model_name": "synthetic:toy"}, "suites": {"ground-truth": {}}}},
    "arms": {"l1": {}},
}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def written(contents: Any, name: str = "study.yaml") -> str:
    Path(name).write_text(contents if isinstance(contents, str) else yaml.safe_dump(contents))
    return name


def test_the_smallest_study_has_five_seeds() -> None:
    study = load(written(SMALLEST))
    assert study.seeds == [0, 1, 2, 3, 4]
    assert list(study.all_arms()) == ["l1"]


def test_a_study_extends_another() -> None:
    written({**SMALLEST, "arms": {"l1": {}, "topk": {"train": {"architecture": "topk", "k": 3}}}})
    other = {
        "extends": "study.yaml",
        "seeds": [7],
        "arms": {"topk": {"train": {"k": 9}}, "gated": {"train": {"architecture": "gated"}}},
    }
    study = load(written(other, "other.yaml"))
    assert study.seeds == [7]
    assert study.arms["topk"].train == {"architecture": "topk", "k": 9}
    assert list(study.arms) == ["l1", "topk", "gated"]


def test_null_takes_an_entry_away() -> None:
    written({**SMALLEST, "arms": {"l1": {}, "topk": {}}})
    study = load(written({"extends": "study.yaml", "arms": {"topk": None}}, "other.yaml"))
    assert list(study.arms) == ["l1"]


def test_what_is_shown_can_be_loaded() -> None:
    study = load("quick")
    assert load(written(as_yaml(study), "shown.yaml")) == study


def test_the_reference_comes_first_and_the_tables_rows_last() -> None:
    contents = {
        **SMALLEST,
        "reference": "plain",
        "arms": {"topk": {}, "plain": {}},
        "rows": {"method": "hybrid-order", "train": {"reorder.start": 9}},
    }
    arms = load(written(contents)).all_arms()
    assert list(arms)[:3] == ["plain", "topk", "full-hybrid-approach"]
    full, without = arms["full-hybrid-approach"], arms["without-gradient-accumulation"]
    assert full.paper == "loss 6910.19"
    assert full.train == {"plugin": ["hybrid-order"], "reorder.start": 9}
    assert without.train["accumulate"] == 1
    assert arms["no-reordering"].kind == "control"
    assert len(arms) == 17


def test_what_is_otherwise_on_a_model() -> None:
    models = {name: SMALLEST["models"]["toy"] | {"sparsity": {"k": [1]}} for name in ("a", "b")}
    arm = {
        "train": {"lr": 1, "k": 2},
        "models": {"b": {"train": {"lr": 3}, "sparsity": {"k": [5, 6]}}},
    }
    study = load(written({**SMALLEST, "models": models, "arms": {"l1": arm}}))
    on_a, on_b = (study.arms["l1"].on_model(name, study.models[name]) for name in ("a", "b"))
    assert on_a == ({"lr": 1, "k": 2}, {"k": [1]})
    assert on_b == ({"lr": 3, "k": 2}, {"k": [5, 6]})


WRONG = [
    ("quik", "there is no study 'quik': did you mean 'quick'? (a study of your own is a file"),
    ("../etc/passwd", "there is no study '../etc/passwd'"),
    ("missing.yaml", "there is no study file missing.yaml"),
]


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_a_study_that_there_is_not(name: str, message: str) -> None:
    with pytest.raises(SaePluginsError) as error:
        load(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("- a\n", "must be a mapping of names to values"),
        ("a: [1\n", "is not YAML"),
        ("extends: study.yaml\n", "extends itself"),
        ("extends: quik\n", "did you mean 'quick'"),
        ({"refrence": "l1"}, "there is no key refrence: did you mean 'reference'?"),
        (
            {"models": {"toy": {"suits": {}}}},
            "there is no key models.toy.suits: did you mean 'models.toy.suites'",
        ),
        (
            {"arms": {"l1": {"trian": {}}}},
            "there is no key arms.l1.trian: did you mean 'arms.l1.train'",
        ),
        ({"arms": {"l1": {"grid": {"lr": []}}}}, "lr: give values that differ from each other"),
        ({"arms": {"l1": {"grid": {"lr": [1, 1]}}}}, "lr: give values that differ from each other"),
        (
            {"arms": {"l1": {}, "m": {"grid": {"lr": [1, 2]}, "train": {"lr": 3}}}},
            "arms.m.train.lr would do nothing beside arms.m.grid.lr; leave one of the two out",
        ),
        (
            {"arms": {"m": {"grid": {"lr": [1, 2]}, "tune": {"lr": [1, 2]}}}},
            "arms.m.grid.lr and arms.m.tune both try learning rates; leave one of the two out",
        ),
        (
            {"arms": {"m": {"grid": {"plugin": ["merge", "resample"]}}}},
            "arms.m.grid.plugin: name plugins in arms of their own",
        ),
        (
            {"arms": {"m": {"grid": {"k": [1, 2]}, "sparsity": {"k": [3]}}}},
            "arms.m.grid.k: the study has this flag under sparsity; give the values there",
        ),
        (
            {"arms": {"m": {"grid": {"lr": [1, 2]}, "models": {"toy": {"train": {"lr": 3}}}}}},
            "arms.m.grid.lr would do nothing on toy, where models.toy.train has this flag",
        ),
        (
            {"arms": {"m": {"grid": {"lr": [1, 2]}, "saes": [{"sae": "a", "seed": 0}]}}},
            "arms.m.grid.lr would do nothing to SAEs that exist already; leave it out",
        ),
        (
            {"reference": "m", "arms": {"m": {"grid": {"lr": [1]}}}},
            "reference: no arm 'm': known: l1, m-lr-1",
        ),
        (
            {"arms": {"l1": {}, "m-lr-1": {}, "m": {"grid": {"lr": [1, 2]}}}},
            "arms: 'm-lr-1' is two arms, one of a grid at least; rename one",
        ),
        (
            {"arms": {"l1": {}, "m": {"grid": {"lr": [1, 2]}, "models": {"tyo": {}}}}},
            "wrong.yaml: arms.m.models: no model 'tyo': did you mean 'toy'?",
        ),
        (
            {"arms": {"m": {"grid": {"plot": ["a/b", "a-b"]}}}},
            "plot: give values that differ from each other, in letters and digits, too",
        ),
        (
            {"arms": {"l1": {}, "m": {"untrained": True, "grid": {"lr": [1, 2]}}}},
            "arms.m.grid.lr would do nothing to SAEs that are not trained; leave it out",
        ),
        (
            {
                "rows": {"method": "hybrid-order", "models": {"toy": {"train": {"lr": 1}}}},
                "arms": {"l1": {}, "no-reordering": {"grid": {"lr": [1, 2]}}},
            },
            "arms.no-reordering.grid.lr would do nothing on toy, where models.toy.train has this",
        ),
        ({"reference": "l2"}, "reference: no arm 'l2': did you mean 'l1'?"),
        ({"reference": None}, "reference: it is needed"),
        ({"models": {"to/y": {"suites": {}}}}, "'to/y' is no name"),
        ({"arms": {"../l1": {}}}, "'../l1' is no name"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": [-1]}, "at least 0"),
        ({"seeds": [0, 10_000]}, "seeds must be below 10000, where those of pilots begin, and"),
        (
            {"arms": {"l1": {"train": {"lr": 1}, "tune": {"lr": [1, 2]}}}},
            "arms.l1.train.lr would do nothing beside the arm's own tune",
        ),
        (
            {"arms": {"l1": {"tune": {"lr": [1, 2]}, "models": {"toy": {"train": {"lr": 1}}}}}},
            "arms.l1.models.toy.train.lr would do nothing beside the arm's own tune",
        ),
        (
            {"arms": {"l1": {"train": {"lr": 1}, "models": {"toy": {"tune": {"lr": [1, 2]}}}}}},
            "arms.l1.train.lr would do nothing beside the arm's own tune",
        ),
        (
            {"arms": {"l1": {"untrained": True, "tune": {"lr": [1, 2]}}}},
            "arms.l1.tune would do nothing to SAEs that are not trained; leave it out",
        ),
        (
            {"arms": {"l1": {"untrained": True, "models": {"toy": {"train": {"lr": 1}}}}}},
            "arms.l1.models.toy.train.lr would do nothing to SAEs that are not trained",
        ),
        (
            {"arms": {"l1": {"train": {"lr": 1}}}, "models": {"toy": {"tune": {"lr": [1, 2]}}}},
            "models.toy.tune would do nothing: each arm has an lr or a tune of its own",
        ),
        (
            {"models": {"toy": {"target_l0": [4], "exact_l0": False}}},
            "models.toy.target_l0 would do nothing: exact_l0 is false, and no arm has values under",
        ),
        ({"seeds": ["x"]}, "seeds.0 'x': it must be a whole number"),
        (
            {"arms": {"l1": {"models": {"toi": {}}}}},
            "arms.l1.models: no model 'toi': did you mean 'toy'?",
        ),
        ({"arms": {"l1": {"kind": "mine"}}}, "arms.l1.kind 'mine': "),
        ({"models": {"toy": {"target_l0": [0]}}}, "L0s to reach must be greater than 0"),
        ({"models": {"toy": {"target_l0": [8, 8]}}}, "different from each other"),
        ({"models": {"toy": {"sparsity": {"k": []}}}}, "k: give values of at least 0"),
        ({"arms": {"l1": {"sparsity": {"k": [1, 1.0]}}}}, "k: give values of at least 0 that diff"),
        ({"margins": {"ground-truth/mcc": 0}}, "margins.ground-truth/mcc 0: "),
        ({"margins": {"ground-truth/mcc": float("inf")}}, "margins.ground-truth/mcc inf: "),
        ({"primary": {"l2": []}}, "primary: no arm 'l2': did you mean 'l1'?"),
        (
            {"unmatched": {"l2": {"against": "l1", "l0": [8, 4]}}},
            "unmatched.l2: no arm 'l2': did you mean 'l1'?",
        ),
        (
            {"unmatched": {"l1": {"against": "l2", "l0": [8, 4]}}},
            "unmatched.l1.against: no arm 'l2': did you mean 'l1'?",
        ),
        (
            {"unmatched": {"l1": {"against": "a", "l0": [8, 4], "seeds": [1, 99]}}},
            "unmatched.l1.seeds: 99 is not under seeds",
        ),
        ({"primary": {"l1": []}}, "primary: 'l1' is the reference"),
        (
            {
                "arms": {"a": {}},
                "compare": ["ground-truth/mcc"],
                "primary": {"a": ["ground-truth/mc"]},
            },
            "primary.a: 'ground-truth/mc' is not under compare: did you mean 'ground-truth/mcc'?",
        ),
        ({"rows": {"method": "hybrid"}}, "no plugin 'hybrid' is installed"),
        ({"rows": {"method": "reorder"}}, "'reorder' is a mechanism, and has no tables"),
    ],
)
def test_what_is_wrong_is_named(contents: Any, message: str) -> None:
    if isinstance(contents, str):
        written(contents)
        name = "study.yaml"
    else:
        written(SMALLEST)
        name = written({"extends": "study.yaml", **contents}, "wrong.yaml")
    with pytest.raises(SaePluginsError) as error:
        load(name)
    assert message.lower() in str(error.value).lower()
    assert name in str(error.value)


def test_what_does_something_on_some_model_is_no_idle_key() -> None:
    models = dict.fromkeys(("a", "b"), SMALLEST["models"]["toy"] | {"tune": {"lr": [1, 2]}})
    arms = {
        "l1": {"train": {"lr": 5}, "models": {"b": {"tune": {"lr": [3, 4]}}}},
        "tuned": {},
        "no-reordering": {"tune": {"lr": [1, 2]}},  # in place of the paper's own
    }
    rows = {"method": "hybrid-order", "train": {"lr": 7}}
    study = load(written({**SMALLEST, "models": models, "arms": arms, "rows": rows}))
    on = {name: study.arms["l1"].tuned_on(name, study.models[name]) for name in models}
    assert on["a"] is None
    assert on["b"].lr == [3, 4]
    assert study.all_arms()["no-reordering"].tuned_on("a", study.models["a"]).lr == [1, 2]


def test_an_arm_with_a_rows_name_says_what_is_otherwise_in_it() -> None:
    contents = {
        **SMALLEST,
        "rows": {"method": "hybrid-order", "train": {"reorder.start": 9, "lr": 1}},
        "arms": {"l1": {}, "no-reordering": {"train": {"lr": 2}, "sparsity": {"k": [3]}}},
    }
    arms = load(written(contents)).all_arms()
    row = arms["no-reordering"]
    assert row.train["lr"] == 2
    assert row.train["without"] == ["reorder"]
    assert row.sparsity == {"k": [3]}
    assert row.description == "Control: No reordering"
    assert next(iter(arms)) == "l1"


def test_rows_that_differ_in_sparsity_only_are_one_arm() -> None:
    models = {"toy": SMALLEST["models"]["toy"] | {"sparsity": {"l1_coefficient": [1], "k": [5]}}}
    arms = load(written({**SMALLEST, "models": models, "rows": {"method": "hierarchical"}}))
    names = arms.all_arms()
    both = names["l1-baseline"]
    assert both.description.startswith("Section 5.4: L1 baseline")
    assert "Control: Constant L1" in both.description
    assert "k" not in names["baseline"].train
    assert names["baseline"].train["architecture"] == "topk"


def test_an_arm_that_is_taken_away_is_no_primary_one() -> None:
    written({**SMALLEST, "arms": {"l1": {}, "a": {}, "b": {}}, "primary": {"a": [], "b": []}})
    study = load(written({"extends": "study.yaml", "arms": {"b": None}}, "other.yaml"))
    assert study.primary == {"a": []}
    assert load(written({"extends": "study.yaml", "primary": None}, "none.yaml")).primary == {}


def test_a_grid_that_is_taken_away_is_no_primary_one() -> None:
    arms = {"l1": {}, "m": {"grid": {"lr": [1, 2]}}}
    written({**SMALLEST, "arms": arms, "primary": {"m-lr-2": [], "m-lr-3": []}})
    with pytest.raises(SaePluginsError, match="primary: no arm 'm-lr-3'"):
        load("study.yaml")
    written({"extends": "study.yaml", "arms": {"m": {"grid": {"lr": [1, 2, 3]}}}}, "more.yaml")
    assert load("more.yaml").primary.keys() == {"m-lr-2", "m-lr-3"}
    assert not load(written({"extends": "more.yaml", "arms": {"m": None}}, "less.yaml")).primary


def test_a_grid_goes_over_what_a_row_of_a_paper_has() -> None:
    contents = {
        **SMALLEST,
        "rows": {"method": "hybrid-order", "train": {"lr": 3}},
        "arms": {"l1": {}, "no-reordering": {"grid": {"lr": [1, 2]}}},
    }
    arms = load(written(contents)).all_arms()
    assert [arms[f"no-reordering-lr-{lr}"].train["lr"] for lr in (1, 2)] == [1, 2]
    assert "no-reordering" not in arms
    assert arms["no-reordering-lr-1"].description == "Control: No reordering. lr 1."


def test_comparisons_are_primary_as_named_or_exploratory_or_neither() -> None:
    arms = {"arms": {"l1": {}, "a": {}, "b": {}, "c": {}}}
    study = load(written({**SMALLEST, **arms, "primary": {"a": [], "b": ["ground-truth/mcc"]}}))
    mcc, f1 = "ground-truth/mcc", "ground-truth/classification/f1_score"
    assert [study.family(arm, mcc) for arm in "abc"] == ["primary", "primary", "exploratory"]
    assert [study.family(arm, f1) for arm in "abc"] == ["primary", "exploratory", "exploratory"]
    assert load(written({**SMALLEST, **arms})).family("a", mcc) == "all"


def test_a_model_that_is_taken_away_is_forgotten_everywhere() -> None:
    models = dict.fromkeys(("a", "b"), SMALLEST["models"]["toy"])
    otherwise = {"models": {"a": {"train": {"lr": 1}}, "b": {"train": {"lr": 2}}}}
    written({**SMALLEST, "models": models, "arms": {"l1": otherwise}})
    study = load(written({"extends": "study.yaml", "models": {"b": None}}, "other.yaml"))
    assert list(study.models) == ["a"]
    assert list(study.arms["l1"].models) == ["a"]


def test_a_grid_is_an_arm_for_each_combination() -> None:
    merged = {
        "description": "Merge.",
        "train": {"plugin": ["merge"]},
        "grid": {"merge.every": [100, 400], "merge.threshold": [0.8, 0.9]},
    }
    study = load(written({**SMALLEST, "arms": {"l1": {}, "merged": merged}}))
    _, first, *_, last = (arms := study.all_arms()).items()
    assert len(arms) == 5
    assert first[0] == "merged-every-100-threshold-0.8"
    assert last[0] == "merged-every-400-threshold-0.9"
    assert last[1].train == {"plugin": ["merge"], "merge.every": 400, "merge.threshold": 0.9}
    assert last[1].description == "Merge. merge.every 400, merge.threshold 0.9."
    assert load(written(as_yaml(study), "again.yaml")) == study


def test_flags_of_a_grid_that_end_alike_are_named_whole() -> None:
    grid = {"activation-threshold.start": [2], "reorder.start": [1, -1]}
    study = load(written({**SMALLEST, "arms": {"l1": {}, "both": {"grid": grid}}}))
    names = [f"both-activation-threshold.start-2-reorder.start-{value}" for value in ("1", "-1")]
    assert list(study.all_arms()) == ["l1", *names]
