"""The papers' own test: what it claims of SAEs that differ in nothing but L0, and what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from sae_plugins.study.facts import Facts
from sae_plugins.study.files import load
from sae_plugins.study.findings import Score, Trained
from sae_plugins.study.spec import Unmatched
from sae_plugins.study.unmatched import COLUMNS, paired_p, table

METRICS = (
    ("core", "ce_loss_score", "loss recovered", "higher", 0.8, 0.06, 0.006),
    ("absorption", "mean_full_absorption_score", "absorption", "lower", 0.3, -0.05, 0.005),
)
ARMS = {"l1": "baseline", "hybrid-order": "method", "batchtopk": "baseline"}


@pytest.fixture
def facts(make_findings: Any, tmp_path: Any) -> Facts:
    """A study in which no arm is better than another at equal L0."""
    found = make_findings(tmp_path, arms=ARMS, grid=(8, 16, 32), metrics=METRICS, seeds=4)
    test = Unmatched(against="batchtopk", l0=(40, 7), seeds=[0, 1, 2])
    study = found.study.model_copy(update={"unmatched": {"hybrid-order": test}})
    return Facts(found.model_copy(update={"study": study}), tmp_path)


def test_sparse_and_dense_saes_of_equal_arms_differ_and_at_equal_l0_they_do_not(
    facts: Facts,
) -> None:
    found = table(facts, "world")
    assert found is not None
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in found.rows]
    assert [row["metric"] for row in rows] == ["loss recovered (core)", "absorption (absorption)"]
    for row, (suite, name, *_) in zip(rows, METRICS, strict=True):
        scores = {
            (s.arm, s.seed): s.value
            for s in facts.findings.scores
            if s.metric == name and (s.arm, s.sparsity) in {(a, b) for a, b in _TESTED}
        }
        values = [[scores[arm, seed] for seed in range(3)] for arm, _ in _TESTED]
        p = scipy.stats.ttest_rel(*values).pvalue
        assert p < 0.05
        assert row["p of the paired t test"] == f"{p:.2g}"
        assert row["at p < 0.05"] == "better", suite
        assert row["verdict at equal L0"] in ("not distinguishable", "underpowered")
        assert row["seeds"] == "0, 1, 2"
    places = [place for place, column in enumerate(COLUMNS) if column == "its L0"]
    for row in found.rows:
        arm, other = (float(row[place]) for place in places)
        assert other < 10 < 25 < arm


_TESTED = (("hybrid-order", "k=32"), ("batchtopk", "k=8"))


def test_what_counts_as_a_value_is_as_for_verdicts(facts: Facts) -> None:
    """Pseudo-values of stability, which takes three seeds, and no value of what failed."""
    found = facts.findings
    stability = found.metrics["world"][0].model_copy(
        update={"suite": "seeds", "name": "stability", "paper": "stability", "better": "higher"}
    )
    rng = np.random.default_rng(0)
    scores = [
        Score(**_of(one), suite="seeds", metric="stability", value=0.5 + 0.01 * one.seed,
              pseudo_value=float(rng.normal(0.5, 0.3)))
        for one in found.trained
    ]  # fmt: skip
    pseudo = {(s.arm, s.sparsity, s.seed): s.pseudo_value or 0.0 for s in scores}
    values = [[pseudo[(*place, seed)] for seed in range(3)] for place in _TESTED]
    for seeds, p in (((0, 1, 2), f"{scipy.stats.ttest_rel(*values).pvalue:.2g}"), ((0, 1), "n/a")):
        test = Unmatched(against="batchtopk", l0=(40, 7), seeds=list(seeds))
        study = found.study.model_copy(update={"unmatched": {"hybrid-order": test}})
        trained = [one for one in found.trained if one.seed in seeds]
        changed = {"study": study, "scores": scores, "metrics": {"world": [stability]},
                   "trained": trained}  # fmt: skip
        shown = table(Facts(found.model_copy(update=changed), facts.folder), "world")
        assert shown is not None
        ((row),) = (dict(zip(COLUMNS, row, strict=True)) for row in shown.rows)
        assert row["p of the paired t test"] == p
        assert (row["verdict at equal L0"] == "no verdict") == (len(seeds) < 3)


def test_a_seed_that_failed_is_not_left_out_at_equal_l0(facts: Facts) -> None:
    found = facts.findings
    trained = [
        one.model_copy(update={"status": "failed", "l0": None})
        if (one.arm, one.seed) == ("batchtopk", 3) else one
        for one in found.trained
    ]  # fmt: skip
    shown = table(Facts(found.model_copy(update={"trained": trained}), facts.folder), "world")
    assert shown is not None
    assert {row[-1] for row in shown.rows} == {"no verdict"}


def _of(one: Trained) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("model", "arm", "sparsity", "seed")}


def test_without_a_named_test_or_its_saes_there_is_none(facts: Facts) -> None:
    study = facts.findings.study
    none = facts.findings.model_copy(update={"study": study.model_copy(update={"unmatched": {}})})
    assert table(Facts(none, facts.folder), "world") is None
    some = [one for one in facts.findings.trained if one.arm != "batchtopk"]
    missing = facts.findings.model_copy(update={"trained": some})
    assert table(Facts(missing, facts.folder), "world") is None


def test_one_seed_or_equal_differences_give_no_p() -> None:
    assert paired_p({1: 2.0}, {1: 1.0, 2: 0.0}) is None
    assert paired_p({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}) is None


def test_the_study_of_hierarchical_has_the_papers_seeds_and_test() -> None:
    study = load("hierarchical")
    ((arm, test),) = study.unmatched.items()
    assert test.seeds == study.seeds[:3] == [42, 43, 44]
    arms = study.all_arms()
    assert arms[arm].description.endswith("the full method")
    assert arms[test.against].train["architecture"] == "topk"
    assert {*test.l0} <= {*study.models["world"].target_l0}
    assert test.l0[0] > test.l0[1]
