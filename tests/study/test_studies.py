"""The packaged studies: each can be run, asks what it should, and has its controls."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest

from sae_plugins.eval_suites import registry as suites_registry
from sae_plugins.framework import registry
from sae_plugins.framework.plugin import Method
from sae_plugins.studies import names
from sae_plugins.study.cells import Cell
from sae_plugins.study.files import load
from sae_plugins.study.gather import gather
from sae_plugins.study.metrics import shown
from sae_plugins.study.plan import plan
from sae_plugins.study.planned import check_suites
from sae_plugins.study.prospects import prospects
from sae_plugins.study.spec import Study

PAPERS = ("adaptive-orthogonality", "adaptive-threshold", "hierarchical", "hybrid-order")
DOCS = Path(__file__).parents[2] / "docs" / "studies.md"
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@functools.cache
def packaged(name: str) -> Study:
    return load(name)


def rate(cell: Cell) -> float:
    return float(cell.settings.get("lr"))


@functools.cache
def cells(name: str) -> list[Cell]:
    """Every SAE of a study, if the first of an arm's pilots is dense and the others are sparse.

    Of learning rates that are tried, one between the others is best. All SAEs are of one seed:
    those of the others differ in nothing else.
    """
    study = packaged(name).model_copy(update={"seeds": [0]})
    pilots = plan(study, lambda _: None).pilots
    arms = itertools.groupby(pilots, key=lambda cell: (cell.model, cell.arm, rate(cell)))
    dense = {cell.folder for cell in (next(group) for _, group in arms)}

    def found(cell: Cell) -> float:
        if cell.purpose == "tuning":
            tried = study.models[cell.model].tune
            assert tried
            return float(rate(cell) == tried.lr[1])
        return 1000.0 if cell.folder in dense else 0.1

    known = plan(study, found)
    assert known.warnings == []
    return known.cells


def at_one_sparsity(study: Study) -> list[Cell]:
    """An SAE or a few of each arm on each model: its plugins are those of all others, too."""
    models = {}
    for name, model in study.models.items():
        sparsity = {flag: values[:1] for flag, values in model.sparsity.items()}
        less = {"sparsity": sparsity, "target_l0": [], "exact_l0": None, "tune": None}
        models[name] = model.model_copy(update=less)
    return plan(study.model_copy(update={"models": models, "seeds": [0]}), lambda _: None).cells


QUICK = {"baselines", "quick"}
"""Studies that take less than a second to plan."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.ci]) for n in names()]
)
def test_a_packaged_study_can_be_run_and_has_the_reference_that_it_says(name: str) -> None:
    """A plain L1 SAE, but in ours: at three sparsities, but where one is the question."""
    study = packaged(name)
    of_mean = {"batchtopk", "matryoshka_batchtopk", "jumprelu"}
    ours = {"ours": "late-untying", "auto-k": "known-k", "smollm2": "zero"}
    assert study.description
    found = {(cell.model, cell.arm, cell.sparsity) for cell in cells(name)}
    for model, arm in itertools.product(study.models, study.all_arms()):
        l0s = 1 if name in ("auto-k", "smollm2") else 3
        assert sum(cell[:2] == (model, arm) for cell in found) >= l0s, (model, arm)
    check_suites(study)
    reference = [cell.settings for cell in cells(name) if cell.arm == study.reference]
    if name in ours:
        assert study.reference == ours[name]
        wanted = of_mean if name == "smollm2" else {"batchtopk"}
        assert {settings.architecture for settings in reference} == wanted
        return
    assert {settings.architecture for settings in reference} == {"standard"}
    assert {plugin for settings in reference for plugin in settings.names} <= {"unit-norm-decoder"}


@pytest.mark.parametrize("name", PAPERS)
def test_the_study_of_a_paper_has_its_rows_and_the_controls_that_it_lacks(name: str) -> None:
    study = packaged(name)
    method = registry.load(name)
    assert issubclass(method, Method)
    arms = study.all_arms()
    described = " ".join(arm.description for arm in arms.values())
    for row in method.rows:
        assert f"{row.table}: {row.label}" in described
    assert {"topk", "batchtopk", "post-hoc-threshold", "untrained"} <= arms.keys()
    assert arms["untrained"].untrained
    assert study.measures
    assert arms.keys() >= study.arms.keys()
    ran = [cell for cell in at_one_sparsity(study) if cell.arm not in study.arms]
    assert {cell.arm for cell in ran} == arms.keys() - study.arms.keys()
    assert all(name in cell.settings.names for cell in ran)


def test_rows_that_a_study_changes_are_rows() -> None:
    for name in PAPERS:
        of_all_studies = {"l1", "topk", "batchtopk", "post-hoc-threshold", "untrained"}
        study = packaged(name)
        for arm in study.arms.keys() - of_all_studies:
            assert ": " in study.all_arms()[arm].description, (name, arm)


def test_quick_compares_the_methods_and_ours_with_controls() -> None:
    study = packaged("quick")
    kinds = [arm.kind for arm in study.all_arms().values()]
    assert {arm for arm in study.arms if study.arms[arm].kind == "method"} == set(PAPERS)
    assert kinds.count("ours") == 1
    assert kinds.count("control") >= 4
    assert study.arms["l2-norm"].train["loss_form"] == "l2_norm", "as three of the methods have it"
    assert len(study.seeds) == 5
    assert set(study.models) == {"world", "toy"}
    probing = study.models["world"].suites["sparse-probing"]
    assert len(probing["dataset_names"]) == 2
    assert probing["k_values"] == [1, 5]


def test_full_has_five_suites() -> None:
    """TPP and sae-probes would cost the other metrics' verdicts, and hours; autointerp money."""
    study = packaged("full")
    suites = {suite for model in study.models.values() for suite in model.suites}
    left_out = {"tpp", "sae-probes", "autointerp", "ravel", "unlearning"}
    assert suites == {*suites_registry.built_in()} - left_out
    assert "dataset_names" not in study.models["world"].suites["sparse-probing"]
    assert {len(model.target_l0) for model in study.models.values()} == {5}


def test_scr_is_marked_as_unreliable() -> None:
    found = shown(packaged("full"), {"scr": ["scr_metric_threshold_20"]})
    (scr,) = (metric for metric in found if metric.suite == "scr")
    assert scr.compared
    assert "2605.18229" in scr.unreliable


@pytest.mark.parametrize("name", names())
def test_every_suite_that_is_run_has_a_verdict(name: str) -> None:
    study = packaged(name)
    compared = {metric.partition("/")[0] for metric in study.compare}
    for model in study.models.values():
        assert not study.compare or model.suites.keys() <= compared


@pytest.mark.parametrize("name", names())
def test_a_packaged_study_can_find_something_on_every_metric(name: str) -> None:
    study = packaged(name)
    found = prospects(study, {})
    compared = {f"{one.metric.suite}/{one.metric.name}" for one in found}
    if study.compare:
        assert compared == set(study.compare)
    else:
        assert "sparse-probing/sae_top_5_test_accuracy" in compared, "a metric for each number"
        assert "sparse-probing/sae_top_{k}_test_accuracy" not in compared
    assert not any(one.hopeless for one in found)
    assert all(one.metric.margin for one in found), "else nothing could be equivalent"


@pytest.mark.parametrize("contents", EXAMPLES)
def test_the_studies_in_the_docs_can_be_run(contents: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(contents)
    study = load(str(file))
    check_suites(study)
    assert plan(study, lambda _: None)


def test_an_arm_that_gives_a_recipes_plugins_up_says_so(tmp_path: Path) -> None:
    arms = {
        arm.name: arm.flags for arm in gather("hybrid-order", load("hybrid-order"), tmp_path).arms
    }
    assert arms["topk"] == "no --plugin --architecture topk"
    assert arms["no-reordering"] == (
        "--lr_decay_fraction 0 --plugin hybrid-order --without reorder"
    )


@pytest.mark.parametrize("name", names())
def test_the_page_counts_arms_and_saes(name: str) -> None:
    study = packaged(name)
    arms = len(study.all_arms())
    l0s = (len(m.target_l0 or next(iter(m.sparsity.values()))) for m in study.models.values())
    row = next(line for line in DOCS.read_text("utf-8").splitlines() if f"| `{name}` |" in line)
    counts = row.split(" | ")[3:5]
    assert counts == [str(arms), str(arms * sum(l0s) * len(study.seeds))]
