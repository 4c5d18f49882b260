"""From a study to its SAEs: which settings each has, and where it lies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_plugins.base import identity
from sae_plugins.base.code import code
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.study import origin
from sae_plugins.study.cells import Cell
from sae_plugins.study.plan import plan
from sae_plugins.study.spec import Study

TOY = {
    "train": {"model_name": "synthetic:toy", "training_tokens": 9600},
    "sparsity": {"l1_coefficient": [0.3, 0.6], "k": [4, 8]},
    "suites": {"ground-truth": {}},
}


def study(**contents: Any) -> Study:
    return Study.model_validate(
        {"reference": "l1", "models": {"toy": TOY}, "arms": {"l1": {}}, "seeds": [0, 1], **contents}
    )


def cells(**contents: Any) -> list[Cell]:
    return plan(study(**contents), lambda _: None).cells


def test_every_arm_at_every_sparsity_with_every_seed() -> None:
    found = cells(arms={"l1": {}, "topk": {"train": {"architecture": "topk"}}})
    assert [(c.arm, c.sparsity, c.seed) for c in found] == [
        *(("l1", f"l1_coefficient={v}", seed) for v in (0.3, 0.6) for seed in (0, 1)),
        *(("topk", f"k={k}", seed) for k in (4, 8) for seed in (0, 1)),
    ]
    assert [c.settings.get("seed") for c in found] == [0, 1] * 4
    assert found[-1].settings.get("k") == 8
    assert len({c.folder for c in found}) == 8


def options(cell: Cell) -> dict[str, dict[str, Any]]:
    """The options that somebody set, by plugin."""
    plugins = cell.settings.plan.plugins
    given = {plugin.name: chosen.model_dump(exclude_unset=True) for plugin, chosen in plugins}
    return {name: values for name, values in given.items() if values}


def test_flags_have_the_types_of_the_command_line() -> None:
    (cell,) = cells(
        arms={"l1": {"train": {"plugin": "reorder", "lr": "1e-2", "reorder.interval": 7}}},
        models={"toy": TOY | {"sparsity": {}}},
        seeds=[3],
    )
    assert cell.sparsity == ""
    assert cell.settings.get("lr") == 0.01
    assert options(cell) == {"reorder": {"interval": 7}}
    assert cell.folder.name.startswith("l1_seed3-")


def test_the_fast_step_makes_another_sae_and_is_for_arms_that_have_one() -> None:
    toy = TOY | {"train": TOY["train"] | {"fast_step": True}, "sparsity": {}}
    arms = {"l1": {}, "pursuit": {"train": {"architecture": "matching_pursuit"}}}
    fast, slow = (
        cells(models={"toy": m}, arms=arms, seeds=[0]) for m in (toy, TOY | {"sparsity": {}})
    )
    assert [cell.settings.plan.training.fast_step for cell in fast] == [True, False]
    assert [one.key == other.key for one, other in zip(fast, slow, strict=True)] == [False, True]


def test_what_does_not_apply_to_an_arm_of_what_all_share_is_left_out() -> None:
    toy = TOY | {"train": TOY["train"] | {"l1_coefficient": 5.0, "l1_warm_up_steps": 3}}
    (l1, *_), topk = (
        cells(models={"toy": toy}, arms={"l1": {"train": {"architecture": a}}})
        for a in ("standard", "topk")
    )
    assert l1.settings.get("l1_warm_up_steps") == 3
    assert "l1_warm_up_steps" not in topk[0].settings.values


def test_a_recipe_s_texts_are_converted_and_its_keys_are_flags(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("lr: 1e-2\nautocast: 'false'\nn_checkpoints: 3\nverbose: true\n")
    toy = TOY | {"train": TOY["train"] | {"recipe": str(recipe)}}
    settings = cells(models={"toy": toy})[0].settings
    assert (settings.get("lr"), settings.get("autocast")) == (0.01, False)
    assert settings.get("n_checkpoints") == 0  # which a study itself decides
    recipe.write_text("odd: 1\n")
    with pytest.raises(SaePluginsError, match="there is no flag --odd"):
        cells(models={"toy": toy})


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("prefetch_llm_batches", "the study itself decides it"),
        ("run_final_eval", "the study itself decides it"),
        ("log_to_wandb", "the study itself decides it"),
        ("wandb_project", "it needs --log_to_wandb"),
        ("streaming", "it does not apply to synthetic:toy"),
    ],
)
def test_flags_that_a_study_does_not_use_are_refused(flag: str, reason: str) -> None:
    with pytest.raises(SaePluginsError, match=f"{flag}: {reason}"):
        cells(arms={"l1": {"train": {flag: True}}})


def test_a_key_changes_with_what_the_sae_depends_on_and_with_nothing_else() -> None:
    def keys(**contents: Any) -> dict[tuple[str, str, int], str]:
        return {(c.arm, c.sparsity, c.seed): c.key for c in cells(**contents)}

    arms: dict[str, Any] = {"l1": {}, "topk": {"train": {"architecture": "topk"}}}
    before = keys(arms=arms)
    said = keys(arms={"l1": {"description": "plain", "kind": "baseline"}, "topk": arms["topk"]},
                description="?", seeds=[1, 0, 2])  # fmt: skip
    assert before.items() <= said.items()
    changed = keys(arms={"l1": {"train": {"lr": 0.01}}, "topk": arms["topk"]})
    assert changed.keys() == before.keys()
    assert {arm for arm, *_ in before.items() - changed.items() for arm in [arm[0]]} == {"l1"}
    untrained = keys(arms={"l1": {}, "topk": arms["topk"] | {"untrained": True}})
    assert {k[0] for k in before if before[k] != untrained[k]} == {"topk"}


def test_an_edited_plugin_gives_other_saes(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"l1": {}, "other": {"train": {"plugin": ["reorder"]}}}
    keys = {cell.key: cell.arm for cell in plan(study(arms=arms), lambda _: None).cells}

    def edited(patterns: Any, classes: Any = ()) -> dict[str, str | None]:
        found = code(patterns, classes)
        return {n: "another" if n.endswith("/reorder.py") else text for n, text in found.items()}

    monkeypatch.setattr(identity, "code", edited)
    again = {cell.key for cell in plan(study(arms=arms), lambda _: None).cells}
    assert {arm for key, arm in keys.items() if key not in again} == {"other"}


def test_coefficients_for_an_l0_are_read_between_pilots() -> None:
    toy = TOY | {
        **{"sparsity": {"l1_coefficient": [0.1, 1.0, 10.0], "k": [1]}, "target_l0": [4, 8]},
        "exact_l0": False,
    }
    arms = {"l1": {}, "topk": {"train": {"architecture": "topk"}}}
    asked = study(models={"toy": toy}, arms=arms)
    waiting = plan(asked, lambda _: None)
    assert [c.sparsity for c in waiting.pilots] == [f"l1_coefficient={v}" for v in (0.1, 1, 10)]
    more = plan(study(models={"toy": toy}, arms=arms, seeds=[5, 6, 7]), lambda _: None)
    assert [c.key for c in more.pilots] == [c.key for c in waiting.pilots], "a seed of their own"
    assert [(c.arm, c.sparsity) for c in waiting.cells] == [
        ("topk", f"k={k}") for k in (4, 8) for _ in range(2)
    ]

    l0 = {"l1_coefficient=0.1": 16.0, "l1_coefficient=1": 4.0, "l1_coefficient=10": 1.0}
    known = plan(asked, lambda cell: l0[cell.sparsity])
    # half way between 4 and 16, and so half way between 1 and 0.1, on log axes
    assert [c.sparsity for c in known.cells if c.arm == "l1"] == [
        *["l1_coefficient=1"] * 2, *["l1_coefficient=0.316"] * 2,
    ]  # fmt: skip
    assert known.warnings == []


def test_the_k_of_topk_is_a_wanted_l0_or_the_whole_numbers_next_to_it() -> None:
    toy = TOY | {"target_l0": [0.5, 4, 5.5], "exact_l0": False}
    arms = {"l1": {}, "topk": {"train": {"architecture": "topk"}}}
    found = cells(models={"toy": toy}, arms=arms, seeds=[0])
    assert [c.sparsity for c in found if c.arm == "topk"] == ["k=1", "k=4", "k=5", "k=6"]


def test_an_l0_that_no_pilot_comes_near_is_not_guessed() -> None:
    toy = TOY | {"target_l0": [4, 100], "exact_l0": False}
    l0 = {"l1_coefficient=0.3": 8.0, "l1_coefficient=0.6": 2.0}
    known = plan(study(models={"toy": toy}), lambda cell: l0[cell.sparsity])
    assert [c.sparsity for c in known.cells] == ["l1_coefficient=0.424"] * 2
    (warning,) = known.warnings
    assert warning.startswith("toy, l1: an L0 of 100 is not between the 2 and 8")
    assert warning.endswith("add smaller ones")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"arms": {"l1": {"train": {"trainin_tokens": 5}}}},
         "arm l1 on model toy: there is no flag --trainin_tokens: did you mean"),
        ({"arms": {"l1": {"train": {"plugin": ["reordr"]}}}}, "arm l1 on model toy: no plugin"),
        ({"arms": {"l1": {"train": {"lr": "fast"}}}}, "--lr 'fast': it must be a number"),
        ({"arms": {"l1": {"train": {"seed": 5}}}}, "seed: the study itself decides it"),
        ({"arms": {"l1": {"train": {"recipe": "baseline-l1"}}}},
         "recipe belongs under models.toy.train"),
        ({"arms": {"l1": {"train": {"n_checkpoints": 2}}}}, "n_checkpoints: the study itself"),
        ({"arms": {"l1": {"train": {"checkpoint_every": 5}}}}, "checkpoint_every: the study"),
        ({"arms": {"l1": {"train": {"heldout_tokens": 64}}}},
         "heldout_tokens belongs under models.toy.train, where it is the same for all arms"),
        ({"arms": {"l1": {"train": {"model_name": "synthetic:small"}}}},
         "model_name belongs under models.toy.train"),
        ({"models": {"toy": TOY | {"train": TOY["train"] | {"heldout_tokens": 0}}}},
         "heldout_tokens is 0"),
        ({"arms": {"l1": {"train": {"architecture": "jumprelu"}}}},
         "sparsity l1_coefficient, k does not apply; its architecture is jumprelu"),
        ({"arms": {"l1": {"train": {"architecture": "topk", "plugin": ["linear-l1"]}}}},
         "does not work on topk SAEs"),
        ({"arms": {"l1": {"sparsity": {"l1_coeficient": [1]}}}},
         "there is no flag --l1_coeficient: did you mean"),
        ({"models": {"toy": TOY | {"train": {"recipe": "no-such"}}}},
         "models.toy.train: there is no recipe 'no-such'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_of_an_arm_and_a_model(
    contents: dict[str, Any], message: str
) -> None:
    with pytest.raises(SaePluginsError) as error:
        cells(**contents)
    assert message in str(error.value)


def test_each_k_of_an_arm_is_judged_by_its_own_size_and_no_default_is() -> None:
    small = {"topk": {"train": {"architecture": "topk", "d_sae": 4}}}
    with pytest.raises(SaePluginsError, match="arm topk on model toy: --k 8 must be at most the"):
        cells(reference="topk", arms=small)
    small["topk"]["sparsity"] = {"k": [2, 4]}  # the model's own is 6
    assert {cell.settings.get("k") for cell in cells(reference="topk", arms=small)} == {2, 4}
    small["topk"]["sparsity"] = {}
    with pytest.raises(SaePluginsError, match="--k 6 must be at most the --d_sae 4"):
        cells(reference="topk", arms=small, models={"toy": TOY | {"sparsity": {}}})


def test_faults_of_all_arms_are_said_at_once_and_a_shared_one_once() -> None:
    arms = {name: {"train": {"lrr": 1}} for name in ("l1", "b")} | {"c": {"train": {"seed": 1}}}
    with pytest.raises(SaePluginsError) as error:
        cells(arms=arms)
    assert [sentence.partition(": ")[0] for sentence in error.value.args] == [
        "arm l1 on model toy, arm b on model toy",
        "arm c on model toy",
    ]


def test_a_flag_that_is_swept_is_not_an_arms_own_too() -> None:
    """It would be trained with the values that are swept, and not with its own."""
    with pytest.raises(SaePluginsError, match="l1 on model toy: l1_coefficient is under train and"):
        cells(arms={"l1": {"train": {"l1_coefficient": 5}}})
    fixed = {"l1": {"train": {"l1_coefficient": 5}}}
    (cell,) = cells(arms=fixed, models={"toy": TOY | {"sparsity": {}}}, seeds=[0])
    assert cell.settings.get("l1_coefficient") == 5


def test_two_flags_that_apply_are_refused() -> None:
    arm = {
        "train": {"plugin": ["reorder"]},
        "sparsity": {"l1_coefficient": [1], "reorder.interval": [5]},
    }
    with pytest.raises(
        SaePluginsError, match=r"l1_coefficient and reorder.interval apply: name one"
    ):
        cells(arms={"l1": arm})


def test_pilots_that_fail_or_give_dead_saes_are_left_out() -> None:
    toy = TOY | {
        **{"sparsity": {"l1_coefficient": [0.1, 1, 10]}, "target_l0": [4], "exact_l0": False}
    }
    l0 = {"l1_coefficient=0.1": 16.0, "l1_coefficient=1": 1.0, "l1_coefficient=10": 0.0}
    known = plan(study(models={"toy": toy}), lambda cell: l0[cell.sparsity])
    assert {c.sparsity for c in known.cells} == {"l1_coefficient=0.316"}
    dead = plan(study(models={"toy": toy}), lambda _: 0.0)
    assert dead.cells == []
    assert "none of the values under sparsity gives an SAE" in dead.warnings[0]


def test_options_of_other_arms_plugins_are_left_out() -> None:
    toy = TOY | {"train": TOY["train"] | {"reorder.start": 9}, "sparsity": {}}
    arms = {"l1": {}, "reordered": {"train": {"plugin": ["reorder"]}}}
    plain, reordered = cells(models={"toy": toy}, arms=arms, seeds=[0])
    assert options(plain) == {}
    assert options(reordered) == {"reorder": {"start": 9}}


# -- what an SAE was made from ---------------------------------------------------------------------


def on_text(folder: Path) -> list[Cell]:
    train = {"recipe": "baseline-demo", "dataset_path": str(folder)}
    models = {"world": {"train": train, "sparsity": {"l1_coefficient": [1]}, "suites": {}}}
    return cells(models=models, seeds=[0])


def test_data_that_are_replaced_under_the_same_path_give_other_saes(tmp_path: Path) -> None:
    text, saes = tmp_path / "text", tmp_path / "study"
    text.mkdir()
    (text / "train.jsonl").write_text('{"text": "one"}\n')
    (first,) = on_text(text)
    assert first.key == on_text(text)[0].key
    kept(saes, first)
    assert first.found_in(saes).compared.changes == []
    (text / "train.jsonl").write_text('{"text": "two"}\n')
    (now,) = on_text(text)
    assert now.key != first.key
    assert now.found_in(saes).folder == now.folder != first.folder
    assert now.found_in(saes).compared.changes == [
        f"the dataset in {text} changed: 1 file (train.jsonl)"
    ]


def test_data_are_the_same_wherever_they_lie_and_however_that_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    Path("text", "train.jsonl").write_text('{"text": "one"}\n')
    (first,) = on_text(Path("text"))
    assert first.key == on_text(tmp_path / "text")[0].key
    kept(tmp_path / "study", first)
    assert first.settings.get("dataset_path") == str(tmp_path / "text")
    Path("text").rename("moved")
    (now,) = on_text(Path("moved"))
    found = now.found_in(tmp_path / "study")
    assert found.folder == first.folder
    assert found.compared.changes == found.compared.unknown == []
    (on_hub,) = on_text(Path("me/text"))
    assert "dataset_path is me/text, and was files here" in (
        on_hub.found_in(tmp_path / "study").compared.changes
    )


def kept(folder: Path, cell: Cell, place: str | None = None, **facts: Any) -> Path:
    """A folder as if the cell's SAE had been trained."""
    made = folder / (cell.folder if place is None else cell.folder.with_name(place))
    made.mkdir(parents=True)
    (made / "run.yaml").write_text(yaml.safe_dump({"description": "x", "versions": {}}))
    (made / origin.ORIGIN).write_text(json.dumps({**cell.facts, **facts}))
    return made


def test_an_sae_is_found_under_another_hash_if_no_known_fact_differs(tmp_path: Path) -> None:
    cell, *_ = cells()
    stem = cell.folder.name.rpartition("-")[0]
    assert cell.found_in(tmp_path).place is None
    code = cell.facts["made_from"]["code"]
    other = {"files": {**code["files"], "framework/trainer.py": "another"}}
    kept(tmp_path, cell, f"{stem}-00000000", made_from={**cell.facts["made_from"], "code": other})
    found = cell.found_in(tmp_path)
    assert found.place is None
    assert found.compared.changes == ["framework/trainer.py changed"]
    assert found.folder == cell.folder
    settings = dict(cell.facts["settings"])
    del settings["adam_beta2"]  # a flag that there was not yet
    kept(tmp_path, cell, f"{stem}-11111111", settings=settings, made_from={})
    found = cell.found_in(tmp_path)
    assert found.place == f"{stem}-11111111"
    assert found.compared.changes == []
    assert found.compared.unknown == ["the embedded world", "the code"]
    kept(tmp_path, cell)
    assert cell.found_in(tmp_path).folder == cell.folder, "what is all the same comes first"


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"settings": [], "versions": {}}'])
def test_what_cannot_be_read_is_no_sae_of_the_study(text: str, tmp_path: Path) -> None:
    cell, *_ = cells()
    made = kept(tmp_path, cell, f"{cell.folder.name[:-8]}00000000")
    (made / origin.ORIGIN).write_text(text)
    assert cell.found_in(tmp_path).place is None


@pytest.mark.parametrize(
    ("facts", "change"),
    [
        ({"settings": {"lr": 0.5}}, "lr is 0.003, and was 0.5"),
        ({"settings": {"untrained": True}}, "untrained is false, and was true"),
        ({"versions": {"sae-lens": "1.0"}}, "and was 1.0"),
    ],
)
def test_other_settings_and_versions_are_named(
    facts: dict[str, Any], change: str, tmp_path: Path
) -> None:
    cell, *_ = cells()
    stem = cell.folder.name.rpartition("-")[0]
    changed = {name: {**cell.facts[name], **values} for name, values in facts.items()}
    kept(tmp_path, cell, f"{stem}-00000000", **changed)
    (named,) = cell.found_in(tmp_path).compared.changes
    assert named.endswith(change)
    known = plan(study(), lambda _: None, lambda one: one.found_in(tmp_path))
    assert known.changes == {named: 1}


def test_commits_are_a_part_of_what_saes_are_made_from() -> None:
    train = {"model_name": "gpt2", "hook_name": "blocks.0.hook_resid_post", "dataset_path": "me/x"}
    models = {"gpt": {"train": train, "sparsity": {"l1_coefficient": [1]}, "suites": {}}}
    asked = study(models=models, seeds=[0])

    def cell(**found: str) -> Cell:
        return plan(asked, lambda _: None, commits=lambda model, flags: found).cells[0]

    unknown, first = cell(), cell(dataset_revision="a" * 40, model_revision="b" * 40)
    assert unknown.made_from["dataset"] is None
    assert first.made_from["dataset"] == {"at": "me/x", "commit": "a" * 40}
    assert first.settings.get("model_revision") == "b" * 40
    other = cell(dataset_revision="c" * 40, model_revision="b" * 40)
    assert len({unknown.key, first.key, other.key}) == 3


# -- exactly the wanted L0 -------------------------------------------------------------------------

FAMILY = {
    "l1": {},
    "gated": {"train": {"architecture": "gated"}},
    "jumprelu": {
        "train": {"architecture": "jumprelu"}, "sparsity": {"l0_coefficient": [0.1, 1, 10]},
    },
    **{name: {"train": {"architecture": name}} for name in ("topk", "batchtopk")},
}  # fmt: skip
EXACT = TOY | {
    "target_l0": [4, 5.5],
    "sparsity": {"l1_coefficient": [0.1, 1, 10], "k": [1]},
}
BY_PILOT = {"0.1": 16.0, "1": 4.8, "10": 1.2}


def reached(cell: Cell) -> float:
    """An L0 by the coefficient, which a larger learning rate raises."""
    return BY_PILOT[cell.sparsity.partition("=")[2].partition(" ")[0]]


def test_every_arm_is_given_exactly_the_wanted_l0() -> None:
    known = plan(study(models={"toy": EXACT}, arms=FAMILY, seeds=[0]), reached)
    given = {(c.arm, c.sparsity): c.settings.plan.training for c in known.cells}
    assert {(arm, t.calibrate_l0) for (arm, _), t in given.items()} == {
        (arm, l0) for arm in FAMILY for l0 in (4, 5.5)
    }
    assert {t.calibrate_tokens for t in given.values()} == {4096}, "its training has 9600"
    labels = [label for arm, label in given if arm == "topk"]
    assert labels == ["k=4 l0=4", "k=6 l0=5.5"], "its k is a whole number"
    assert [label for arm, label in given if arm == "batchtopk"] == ["k=4 l0=4", "k=5.5 l0=5.5"]
    # thresholds had better take activations away, so that it begins with a fifth more
    assert next(label for arm, label in given if arm == "l1") == "l1_coefficient=1 l0=4"
    assert next(label for arm, label in given if arm == "jumprelu") == "l0_coefficient=1 l0=4"
    assert {pilot.settings.plan.training.calibrate_l0 for pilot in known.pilots} == {None}
    assert known.warnings == []


def test_a_wanted_l0_that_pilots_reach_is_trained_where_a_fifth_more_is_out_of_reach() -> None:
    """They reach 16 and 1.2; a fifth more than 15 is 18, and than 40 is 48."""
    toy = EXACT | {"target_l0": [5.5, 15, 40]}
    known = plan(study(models={"toy": toy}, seeds=[0]), reached)
    assert [c.sparsity for c in known.cells] == [
        "l1_coefficient=0.544 l0=5.5",  # as where the others are not wanted
        "l1_coefficient=0.1 l0=15",
    ]
    far, near = known.warnings
    assert far == (
        "toy, l1: an L0 of 40 is not between the 1.2 and 16 that its values under sparsity give "
        "(48 is aimed at, since thresholds take activations away); add smaller ones"
    )
    assert near == (
        "toy, l1: for an L0 of 15, its values under sparsity give 16 at most, which is less than "
        "the 18 that is aimed at, so that SAEs may turn out too sparse; add smaller ones"
    )
    few = plan(study(models={"toy": EXACT | {"target_l0": [0.5]}}, seeds=[0]), reached)
    assert few.cells == []
    (sparse,) = few.warnings
    assert "an L0 of 0.5 is not between the 1.2 and 16" in sparse
    assert "(0.6 is aimed at" in sparse
    assert sparse.endswith("add larger ones")


def test_another_wanted_l0_leaves_saes_and_pilots_alone() -> None:
    def keys(targets: list[float]) -> set[str]:
        toy = EXACT | {"target_l0": targets}
        known = plan(study(models={"toy": toy}, arms=FAMILY), reached)
        return {cell.key for cell in (*known.cells, *known.pilots)}

    assert keys([4]) < keys([4, 5.5])


def test_an_arm_of_one_setting_is_given_each_wanted_l0() -> None:
    arms = {"l1": {}, "one": {"train": {"l1_coefficient": 0.1}}}
    toy = EXACT | {"sparsity": {}}
    known = plan(study(models={"toy": toy}, arms=arms, seeds=[0]), lambda _: None)
    assert {(c.arm, c.sparsity) for c in known.cells} == {
        (arm, f"l0={l0}") for arm in arms for l0 in ("4", "5.5")
    }
    assert known.pilots == []


def test_how_many_tokens_set_thresholds_is_the_studys_to_say() -> None:
    toy = EXACT | {"train": TOY["train"] | {"calibrate_tokens": 777}}
    known = plan(study(models={"toy": toy}, arms=FAMILY), reached)
    assert {c.settings.plan.training.calibrate_tokens for c in known.cells} == {777}


PURSUIT = {"l1": {}, "pursuit": {"train": {"architecture": "matching_pursuit"}, "sparsity":
           {"residual_threshold": [0.1, 0.5]}}}  # fmt: skip


def test_where_an_arm_cannot_none_is_and_it_is_said() -> None:
    l0 = {"0.1": 8.0, "0.5": 3.0}
    known = plan(
        study(models={"toy": EXACT}, arms=PURSUIT),
        lambda c: l0[c.sparsity.partition("=")[2]] if c.arm == "pursuit" else reached(c),
    )
    assert {c.settings.plan.training.calibrate_l0 for c in known.cells} == {None}
    why = "no threshold can take the place of the rule of the SAEs of pursuit (matching_pursuit)"
    assert f"toy: L0s are not set exactly, since {why}" in known.warnings


def test_an_arm_whose_k_is_its_l0_needs_no_thresholds() -> None:
    arms = {"l1": {}, "abs": {"train": {"architecture": "abstopk"}}}
    toy = EXACT | {"target_l0": [4]}
    known = plan(study(models={"toy": toy}, arms=arms), reached)
    assert {(c.arm, c.sparsity) for c in known.cells} == {
        ("l1", "l1_coefficient=1 l0=4"),
        ("abs", "k=4"),
    }


def test_without_exact_l0s_k_has_pilots_too_since_inference_may_miss_it() -> None:
    toy = EXACT | {"exact_l0": False, "target_l0": [4, 8]}
    arms = {"l1": {}, "batchtopk": {"train": {"architecture": "batchtopk"}}}

    def missing(cell: Cell) -> float:
        return {"k=4": 6.0, "k=8": 12.0}.get(cell.sparsity) or reached(cell)

    known = plan(study(models={"toy": toy}, arms=arms), missing)
    assert [c.sparsity for c in known.pilots if c.arm == "batchtopk"] == ["k=4", "k=8"]
    assert {c.sparsity for c in known.cells if c.arm == "batchtopk"} == {"k=2.67", "k=5.33"}


@pytest.mark.parametrize(
    ("toy", "message"),
    [
        (TOY | {"exact_l0": True}, "models.toy.exact_l0 needs target_l0: the L0s that are wanted"),
        (EXACT | {"exact_l0": True},
         "models.toy.exact_l0: no threshold can take the place of the rule of the SAEs of pursuit"),
        (EXACT | {"tune": {"lr": [0.1, 0.2]}},
         "learning rates are compared at equal L0, so tune needs target_l0, and SAEs of all arms"),
        (EXACT | {"train": TOY["train"] | {"calibrate_l0": 5}}, "calibrate_l0: the study itself"),
    ],
)  # fmt: skip
def test_exact_l0s_that_cannot_be_are_refused(toy: Any, message: str) -> None:
    with pytest.raises(SaePluginsError) as error:
        cells(models={"toy": toy}, arms=PURSUIT)
    assert message in str(error.value)


# -- the learning rate of each arm -----------------------------------------------------------------

TUNED = EXACT | {"target_l0": [4, 5.5, 8], "tune": {"lr": [0.002, 0.001, 0.004]}}
TWO = {"l1": {}, "batchtopk": {"train": {"architecture": "batchtopk"}}}


def at_best(*best: float) -> Any:
    """Pilots that explain most at the arms' best learning rates."""
    by_arm = dict(zip(TWO, best, strict=True))

    def shown(cell: Cell) -> float:
        if cell.purpose == "pilot":
            return reached(cell)
        lr = float(cell.settings.get("lr"))
        return 0.9 - abs(math.log(lr / by_arm[cell.arm])) + 0.001 * (cell.seed % 2)

    return shown


def test_each_arm_gets_its_best_learning_rate() -> None:
    known = plan(study(models={"toy": TUNED}, arms=TWO, seeds=[0]), at_best(0.002, 0.004))
    assert {(c.arm, c.settings.get("lr")) for c in known.cells} == {
        ("l1", 0.002),
        ("batchtopk", 0.004),
    }
    assert len(known.cells) == 6
    l1, batchtopk = known.tuned
    assert (l1.arm, l1.l0, l1.best, l1.edge) == ("l1", 5.5, 0.002, None)
    assert [one.lr for one in l1.tried] == [0.001, 0.002, 0.004]
    assert l1.tried[1].scores == [0.9, 0.901]
    assert batchtopk.edge == "largest"
    (warning,) = known.warnings
    assert warning.startswith("toy, batchtopk: the best learning rate, 0.004, is the largest that")
    assert warning.endswith("add larger ones under tune")


def test_pilots_have_seeds_of_their_own_and_each_rate_its_own_coefficients() -> None:
    waiting = plan(study(models={"toy": TUNED}, arms=TWO), lambda _: None)
    assert waiting.cells == [], "nothing is known yet"
    assert {c.seed for c in waiting.pilots} == {10_000, 10_001}
    l1 = [c for c in waiting.pilots if c.arm == "l1"]
    assert {c.purpose for c in l1} == {"pilot"}, "the coefficients come first"
    assert {c.settings.get("lr") for c in l1} == {0.001, 0.002, 0.004}
    assert len(l1) == 9
    tuning = [c for c in waiting.pilots if c.arm == "batchtopk"]
    assert {(c.purpose, c.tuning_tokens) for c in tuning} == {("tuning", 4096)}
    assert len(tuning) == 6
    known = plan(study(models={"toy": TUNED}, arms=TWO), at_best(0.002, 0.002))
    assert len(known.pilots) == 9 + 6 + 6
    assert len({c.folder for c in known.pilots}) == len(known.pilots), "each is trained once"


def test_planning_is_linear_in_the_pilots(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, looked = Cell.folder.fget, [0]  # type: ignore[attr-defined]

    def counted(cell: Cell) -> Path:
        looked[0] += 1
        return folder(cell)  # type: ignore[no-any-return]

    monkeypatch.setattr(Cell, "folder", property(counted))
    pilots = []
    for rates in (3, 12):
        tune = {"lr": [0.001 * (1 + rate) for rate in range(rates)]}
        toy = TUNED | {"tune": tune, "sparsity": {"l1_coefficient": [0.1, 1, 10]}}
        looked[0] = 0
        known = plan(study(models={"toy": toy}, seeds=[0]), at_best(0.002, 0.002))
        pilots.append((len(known.pilots), looked[0]))
    (few, _), (many, times) = pilots
    assert many == 4 * few
    assert times < 4 * many


def test_more_rates_leave_pilots_alone_and_another_best_gives_other_saes() -> None:
    fewer = TUNED | {"tune": {"lr": [0.001, 0.002]}}
    asked = (study(models={"toy": toy}, arms=TWO) for toy in (fewer, TUNED))
    before, after = (plan(one, at_best(0.002, 0.004)) for one in asked)
    assert {c.key for c in before.pilots} < {c.key for c in after.pilots}
    kept = {c.key for c in before.cells} & {c.key for c in after.cells}
    assert {c.arm for c in after.cells if c.key in kept} == {"l1"}


def test_who_is_not_tuned() -> None:
    arms = {
        "l1": {},
        "own": {"train": {"lr": 0.5}},
        "asked": {"train": {"lr": 0.5}, "tune": {"lr": [0.1, 0.2], "seeds": 1}},
        "untrained": {"untrained": True, "train": {"architecture": "topk"}},
    }
    waiting = plan(study(models={"toy": TUNED}, arms=arms), lambda _: None)
    by_arm = {a: {c.settings.get("lr") for c in waiting.pilots if c.arm == a} for a in arms}
    assert by_arm == {
        "l1": {0.001, 0.002, 0.004}, "own": {0.5}, "asked": {0.1, 0.2}, "untrained": set(),
    }  # fmt: skip


def test_rates_that_fail_are_not_chosen() -> None:
    def shown(cell: Cell) -> float:
        if cell.arm == "batchtopk" or (
            cell.purpose == "tuning" and cell.settings.get("lr") > 0.003
        ):
            return math.nan
        return at_best(0.004, 0.004)(cell)

    known = plan(study(models={"toy": TUNED}, arms=TWO), shown)
    assert {(c.arm, c.settings.get("lr")) for c in known.cells} == {("l1", 0.002)}
    assert any("batchtopk: none of the learning rates under tune" in w for w in known.warnings)
