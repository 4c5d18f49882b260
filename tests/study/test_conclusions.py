"""What a study concludes, in words that do not say more than was found."""

from dataclasses import replace

import numpy as np
import pytest
import sketches

from sae_plugins.framework.calibration import Calibration
from sae_plugins.study.conclusions import answers
from sae_plugins.study.facts import Facts
from sae_plugins.study.findings import Contrast, Findings, ModelInfo
from sae_plugins.study.report import write
from sae_plugins.study.statistics import compare

METRICS = (("ground-truth", "mcc", "MCC", "higher", 0.8, 0.05, 0.001),)
ARMS = {"l1": "baseline", "crosses": "control", "small": "method", "fewer": "ours"}
GAPS = {"crosses": {8: -0.1, 16: 0.2, 32: 0.3}, "small": dict.fromkeys((8, 16, 32), 0.012)}


@pytest.fixture(scope="module")
def crossing(make_findings, tmp_path_factory):
    """Exact L0s: one arm crosses the reference, one is ahead by little, one lacks an L0."""
    elsewhere = tmp_path_factory.mktemp("runs")
    made = make_findings(
        elsewhere, arms=ARMS, metrics=METRICS, models=("toy",), margins={"mcc": 0.02}
    )
    facts = made.model_copy(update={"details": []}).model_dump()
    for one in facts["trained"]:
        wanted = float(one["sparsity"].removeprefix("k="))
        how = {"reached": wanted, "most": 99.0, "spread": 0.0, "tokens": 4096, "threshold": 0.1}
        one["calibration"] = Calibration(l0=wanted, lowers=False, **how)
        if (one["arm"], wanted) == ("fewer", 32):
            one.update(status="missing", l0=None, calibration=None)
    rng = np.random.default_rng(0)
    for score in facts["scores"]:
        if score["metric"] == "mcc":
            l0 = int(score["sparsity"].removeprefix("k="))
            gap = GAPS.get(score["arm"], {}).get(l0, 0)
            score["value"] = 0.5 + gap + float(rng.normal(0, 0.001))
    facts["models"] = {
        "toy": ModelInfo(
            name="synthetic:toy", what="96 features in 48 dimensions", is_synthetic=True, d_in=48,
            d_sae=[96, 128], training_tokens=[307200], true_l0=5.53,
        )
    }  # fmt: skip
    found = Findings.model_validate(facts)
    points, (metric, _) = Facts(found, elsewhere).points, found.metrics["toy"]
    asked = {arm: points.question("toy", metric, arm, "l1") for arm in ARMS if arm != "l1"}
    place = {"model": "toy", "suite": "ground-truth", "metric": "mcc"}
    contrasts = [Contrast(**place, arm=arm, comparison=one) for arm, one in compare(asked).items()]
    return found.model_copy(update={"contrasts": contrasts})


@pytest.fixture(scope="module")
def report(crossing, tmp_path_factory):
    """Its report, as Markdown and as a page."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches.Figure, "savefig", sketches.write)
        page = write(crossing, folder)
    return [(folder / "report.md").read_text("utf-8"), page.read_text("utf-8")]


def test_what_is_so_on_average_only_is_said_with_the_verdict(crossing, tmp_path):
    (answer,) = answers(Facts(crossing, tmp_path))
    said = {arm.name: (l0s, text) for arm, l0s, text in answer.said}
    l0s, text = said["crosses"]
    assert text.startswith("better on all 1 (MCC +0.")
    assert text.endswith("but worse at an L0 of 8)")
    assert l0s == ""


def test_less_than_the_margin_is_said_with_the_verdict(crossing, tmp_path):
    (answer,) = answers(Facts(crossing, tmp_path))
    (text,) = (text for arm, _, text in answer.said if arm.name == "small")
    assert text.startswith("better on all 1 (MCC +0.01")
    assert "less than the margin of 0.02" in text


def test_the_l0s_of_an_arm_stand_out_where_they_are_fewer(crossing, tmp_path):
    (answer,) = answers(Facts(crossing, tmp_path))
    assert answer.l0s == "L0s of 8, 16 and 32"
    assert {arm.name: l0s for arm, l0s, _ in answer.said}["fewer"] == "L0s of 8 and 16"
    (fewer,) = (c.comparison for c in crossing.contrasts if c.arm == "fewer")
    assert "not compared at an L0 of 32, where one of the two arms has no score" in str(
        fewer.warnings
    )


def test_an_arm_without_a_verdict_is_over_no_l0(crossing, tmp_path):
    contrasts = [
        one.model_copy(update={"comparison": replace(one.comparison, verdict="no verdict")})
        if one.arm == "fewer"
        else one
        for one in crossing.contrasts
    ]
    found = crossing.model_copy(update={"contrasts": contrasts})
    (answer,) = answers(Facts(found, tmp_path))
    assert "fewer" not in {arm.name for arm, *_ in answer.said}
    assert answer.alike == ["No verdict, for reasons that are below the table of verdicts: fewer."]


def test_samples_are_not_called_text(crossing, tmp_path):
    (answer,) = answers(Facts(crossing, tmp_path))
    assert "4,096 samples that its thresholds were set on" in answer.equal_l0
    assert "text" not in answer.equal_l0


def test_the_report_says_what_the_bullets_say_in_its_tables(report):
    for text in report:
        table = text.partition("its scores at an L0 of 16.0")[2]
        assert "but worse at an L0 of 8" in table
        assert "&lt; margin 0.02" in table
        assert text.index("uncorrected. A verdict") < text.index("its scores at an L0 of")
        assert text.count("at L0s of 8, 16 and 32") == 1
        assert "at L0s of 8 and 16 only" in text
        assert "What crosses does" in text
        assert "synthetic:toy, 96 features in 48 dimensions; true L0 5.53; d_in 48" in text.replace(
            "\\", ""
        )
        assert "96 or 128; SAEs trained on 307,200 samples." in text
        assert "0.02, the default" in text
        assert "L0 is the wanted one; " in text
        assert "explained variance (heldout), set for it" in text
        assert "interpolated where" not in text


def test_differences_by_l0_stand_in_a_table(report):
    markdown, page = report
    rows = [line.split(" | ") for line in markdown.splitlines() if line.startswith("| crosses | ")]
    signs = {row[1]: row[2][0] for row in rows if row[1] in ("8", "16", "32")}
    assert signs == {"8": "-", "16": "+", "32": "+"}
    assert "<summary>Differences by L0</summary>" in page


def test_arms_are_in_one_order_everywhere(crossing, tmp_path):
    facts = Facts(crossing, tmp_path)
    assert [*facts.arms] == [*facts.looks] == ["l1", "small", "fewer", "crosses"]
