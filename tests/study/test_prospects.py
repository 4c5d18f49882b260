"""What a study can find is said before it runs, and one that can find nothing is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints.main import main
from sae_plugins.study import execute
from sae_plugins.study.metrics import check_compared
from sae_plugins.study.power import detectable_effect
from sae_plugins.study.prospects import known_noise, prospects, refuse_hopeless
from sae_plugins.study.spec import Study
from sae_plugins.study.words import number

STUDY: dict[str, Any] = {
    "reference": "l1",
    "models": {
        "toy": {
            "train": {"model_name": "synthetic:toy"},
            "sparsity": {"l1_coefficient": [0.3, 1]},
            "suites": {"ground-truth": {}},
        }
    },
    "arms": {"l1": {}, "same": {}, "other": {"train": {"lr": 0.01}}},
}
MCC = ("toy", "ground-truth", "mcc")
DEFAULTS = {"mcc", "recovered", "matched_f1", "absorption", "explained_variance"}
"""What is compared where a study names nothing."""


def study(**contents: Any) -> Study:
    return Study.model_validate(STUDY | contents)


def findings(folder: Path, model: str = "toy", **sd: float | None) -> Path:
    """A folder with earlier results: standard deviations by metric."""
    folder.mkdir(parents=True, exist_ok=True)
    contrasts = [
        {"model": model, "arm": "x", "suite": "ground-truth", "metric": m, "comparison": {"sd": s}}
        for m, s in sd.items()
    ]
    (folder / "findings.json").write_text(json.dumps({"contrasts": contrasts}))
    return folder


def test_every_compared_metric_has_its_smallest_detectable_difference() -> None:
    found = prospects(study(seeds=[0, 1, 2]), {MCC: 0.004})
    by_metric = {one.metric.name: one for one in found}
    assert set(by_metric) == DEFAULTS
    assert {one.comparisons for one in found} == {10}
    effect = detectable_effect(3, 0.05 / 10)
    assert {one.effect for one in found} == {effect}
    mcc, f1 = by_metric["mcc"], by_metric["matched_f1"]
    assert (mcc.detectable, f1.detectable) == (pytest.approx(0.004 * effect), None)
    assert (mcc.underpowered, f1.underpowered) == (True, False)
    assert mcc.seeds is not None
    assert 0.004 * detectable_effect(mcc.seeds, 0.05 / 10) <= 0.02
    assert f1.seeds is None


def test_primary_comparisons_are_a_family_of_their_own() -> None:
    found = prospects(study(primary={"same": ["ground-truth/mcc"]}), {})
    sizes = {(one.metric.name, one.family): one.comparisons for one in found}
    assert sizes.pop(("mcc", "primary")) == 1
    assert sizes == {(name, "exploratory"): 9 for name in DEFAULTS}


def test_what_means_nothing_on_a_model_is_not_compared_there() -> None:
    models = {
        name: STUDY["models"]["toy"] | {"train": {"model_name": f"synthetic:{name}"}}
        for name in ("toy", "small")
    }
    found = prospects(study(models=models, compare=["ground-truth/absorption"]), {})
    assert [(one.model, one.comparisons) for one in found] == [("toy", 2)]


def test_stability_takes_three_seeds() -> None:
    two, three = (
        prospects(study(seeds=[*range(n)], compare=["seeds/stability"]), {}) for n in (2, 3)
    )
    assert [one.effect for one in three] == [detectable_effect(3, 0.05 / 2)]
    with pytest.raises(SaePluginsError, match="2 seeds give no verdict on stability, which takes"):
        refuse_hopeless(two, 2)


@pytest.mark.parametrize(
    ("seeds", "arms", "noise", "refused"),
    [
        (1, 1, {}, "one seed gives no verdict"),
        (
            2,
            1,
            {},
            "with 2 seeds and 5 comparisons it takes a difference of 58 standard deviations",
        ),
        (3, 1, {}, ""),
        (5, 12, {}, ""),
        (2, 1, {MCC: 0.2}, "with 2 seeds"),  # 7 of a score that ends at 1
        (2, 1, {MCC: 0.001}, ""),  # one that can be found is enough
    ],
)
def test_a_study_that_can_find_nothing_is_refused(
    seeds: int, arms: int, noise: dict[tuple[str, str, str], float], refused: str
) -> None:
    others = {f"arm{number}": {} for number in range(arms)}
    found = prospects(study(seeds=list(range(seeds)), arms={"l1": {}, **others}), noise)
    if not refused:
        refuse_hopeless(found, seeds)
        return
    with pytest.raises(SaePluginsError) as error:
        refuse_hopeless(found, seeds)
    assert refused in str(error.value)
    assert "--underpowered" in str(error.value)


def test_a_study_of_one_arm_compares_nothing_and_is_not_refused() -> None:
    found = prospects(study(arms={"l1": {}}, seeds=[0]), {})
    assert found == []
    refuse_hopeless(found, 1)


def test_noise_is_the_median_over_arms_of_this_study_before_an_earlier_one(tmp_path: Path) -> None:
    own, earlier = tmp_path / "own", findings(tmp_path / "earlier", "other", mcc=3.0, f=4.0)
    assert known_noise(study(), own, None) == {}
    theirs = known_noise(study(), own, earlier)
    assert theirs == {("toy", "ground-truth", "mcc"): 3.0, ("toy", "ground-truth", "f"): 4.0}
    contents = json.loads((findings(own, mcc=1.0) / "findings.json").read_text())
    more = [{**contents["contrasts"][0], "comparison": {"sd": sd}} for sd in (2.0, 50.0, None, 0)]
    contents["contrasts"] += more
    (own / "findings.json").write_text(json.dumps(contents))
    assert known_noise(study(), own, earlier) == theirs | {MCC: 2.0}


def test_an_earlier_study_of_other_models_is_refused(tmp_path: Path) -> None:
    folder = findings(tmp_path, "a", mcc=1.0)
    contents = json.loads((folder / "findings.json").read_text())
    contents["contrasts"] += [{**contents["contrasts"][0], "model": "b"}]
    (folder / "findings.json").write_text(json.dumps(contents))
    with pytest.raises(SaePluginsError, match=r"it has models a, b, and this study has toy; call"):
        known_noise(study(), tmp_path / "none", folder)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"primary": {"same": ["ground-truth/uniqueness"]}}, "is not compared by default; name it"),
        ({"primary": {"same": ["ground-truth/mc"]}}, "primary.same: no metric 'ground-truth/mc'"),
        ({"margins": {"cor/l0": 1}}, "margins: no suite 'cor'"),
        (
            {"compare": ["ground-truth/mcc"], "margins": {"ground-truth/uniqueness": 1}},
            "margins: ground-truth/uniqueness is not under compare, so that its margin would do",
        ),
        (
            {"margins": {"seeds/stability": 1}},
            "margins: seeds/stability is not compared by default; name it under compare",
        ),
        ({"margins": {"ground-truth/sae_l0": 1}}, "margins: ground-truth/sae_l0: neither higher"),
    ],
)
def test_metrics_that_cannot_be_compared_have_no_margin_and_are_not_primary(
    contents: dict[str, Any], message: str
) -> None:
    with pytest.raises(SaePluginsError) as error:
        check_compared(study(**contents))
    assert message in str(error.value)


@pytest.mark.parametrize("contents", ["{", "[]", '{"contrasts": [{}]}', '{"contrasts": 1}'])
def test_earlier_results_that_cannot_be_read_are_named(contents: str, tmp_path: Path) -> None:
    with pytest.raises(SaePluginsError, match=r"--noise_from .*there is no findings.json"):
        known_noise(study(), tmp_path, tmp_path)
    (tmp_path / "findings.json").write_text(contents)
    with pytest.raises(
        SaePluginsError, match=r"findings.json cannot be read as a study's findings"
    ):
        known_noise(study(), tmp_path, None)


# -- the command line ------------------------------------------------------------------------------


def test_status_and_run_say_it_and_run_refuses_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY | {"seeds": [0, 1]}))
    ran: list[Path] = []

    def run(_: Study, folder: Path, *__: Any) -> None:
        ran.append(folder)
        raise OSError("enough")

    monkeypatch.setattr(execute, "run", run)
    effect = f"{detectable_effect(2, 0.05 / 10):.3g} SD"
    assert main(["study", "status", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert f"10 comparisons, 2 seeds: a difference of {effect} of the seeds' noise" in said
    assert "--noise_from FOLDER" in said
    assert main(["study", "run", "mine.yaml"]) == 2
    shown = capsys.readouterr()
    assert effect in shown.out
    assert "this study can find nothing" in shown.err
    assert ran == []
    assert main(["study", "run", "mine.yaml", "--underpowered"]) == 1
    assert ran == [Path("studies/mine")]
    capsys.readouterr()
    findings(Path("earlier"), mcc=0.0001)
    assert main(["study", "status", "mine.yaml", "--noise_from", "earlier"]) == 0
    detects = number(0.0001 * detectable_effect(2, 0.05 / 10))
    (row,) = (x for x in capsys.readouterr().out.splitlines() if "ground-truth/mcc" in x)
    assert [cell.strip() for cell in row.split("│")][3:7] == ["0.0200", detects, "0.000100", "2"]
    assert main(["study", "run", "mine.yaml", "--noise_from", "earlier"]) == 1
    assert len(ran) == 2
