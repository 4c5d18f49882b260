"""Which scores arms are compared by, and at which L0."""

from __future__ import annotations

import math
from typing import Any

from sae_plugins.framework.calibration import Calibration
from sae_plugins.study.findings import ReportedMetric, Score, Trained
from sae_plugins.study.points import Points
from sae_plugins.study.statistics import Point, compare, differences

MCC = ReportedMetric(suite="ground-truth", name="mcc", paper="MCC", meaning="", better="higher",
                     compared=True, margin=0.02)  # fmt: skip
STABILITY = MCC.model_copy(update={"suite": "seeds", "name": "stability"})


def sae(
    arm: str, l0: float | None, wanted: float | None = None, seed: int = 0, **about: Any
) -> Trained:
    """It has exactly the L0 that is wanted on the text that set thresholds, unless `reached`."""
    found = None
    if wanted is not None:
        found = Calibration(l0=wanted, reached=about.pop("reached", wanted), most=99, spread=0.01,
                            tokens=4096, threshold=0.1, lowers=False)  # fmt: skip
    return Trained(model="toy", arm=arm, sparsity=f"l0={wanted or l0}", seed=seed, folder="here",
                   l0=l0, calibration=found, **{"status": "ok", **about})  # fmt: skip


def score(one: Trained, value: float | None, metric: ReportedMetric = MCC, **more: Any) -> Score:
    return Score(model=one.model, arm=one.arm, sparsity=one.sparsity, seed=one.seed,
                 suite=metric.suite, metric=metric.name, value=value, **more)  # fmt: skip


def l0s(saes: list[Trained], *arms: str) -> list[list[float]]:
    points = Points(saes, [score(one, 0.5) for one in saes])
    return [[p.l0 for p in of] for of in points.of("toy", "ground-truth", "mcc", arms).values()]


def test_the_wanted_l0_counts_where_all_saes_of_both_arms_have_it() -> None:
    l1, topk = [sae("l1", 7.85, 8), sae("l1", 15.7, 16)], [sae("topk", 7.9, 8)]
    absolute = [sae("abstopk", 8.0), sae("abstopk", 16.0)]
    short = [sae("short", 7.8, 8), sae("short", 14.1, 16, reached=14.2)]
    every = [*l1, *topk, *absolute, *short]
    assert l0s(every, "topk", "l1") == [[8], [8, 16]]
    assert l0s(every, "abstopk", "l1") == [[8.0, 16.0], [7.85, 15.7]], "all are as measured"
    assert l0s(every, "short", "l1") == [[7.8, 14.1], [7.85, 15.7]]
    assert l0s([*every, sae("l1", None, 8, seed=1, status="missing")], "topk", "l1") == [
        [8], [8, 16],
    ]  # fmt: skip


def test_an_exact_arm_is_not_moved_against_one_that_stands_as_measured() -> None:
    """Both have the same frontier, so that there is no difference wherever its SAEs stand."""
    saes = [
        sae(arm, l0 * (0.98 if arm == "l1" else 1), l0 if arm == "l1" else None, seed)
        for arm in ("l1", "abstopk")
        for l0 in (8, 16, 32)
        for seed in range(3)
    ]
    points = Points(saes, [score(one, math.log(one.l0 or 0)) for one in saes])
    question = points.question("toy", MCC, "abstopk", "l1")
    assert not question.exact
    found = differences(question.arm, question.reference, exact=question.exact)
    assert max(map(abs, found.by_seed.values())) < 1e-12


def test_no_score_of_exact_saes_is_read_between_two_of_them() -> None:
    """The frontier of both is the same, and bends at 8, where one SAE has failed."""
    saes = [sae(arm, l0, l0) for arm in ("l1", "topk") for l0 in (4.0, 8, 16)]
    failed = sae("topk", None, 8, status="failed")
    saes = [one for one in saes if (one.arm, one.l0) != ("topk", 8)] + [failed]
    points = Points(saes, [score(one, 0.9 if one.l0 == 8 else 0.5) for one in saes if one.l0])
    question = points.question("toy", MCC, "topk", "l1")
    assert question.exact
    found = differences(question.arm, question.reference, exact=True)
    assert found.by_seed == {0: 0.0}
    assert found.fewer == (0,)
    assert not found.chords
    read = differences(question.arm, question.reference)
    assert read.by_seed[0] < -0.1, "the chord lies below the bend"


def test_exact_saes_without_a_common_l0_are_apart() -> None:
    saes = [sae("l1", 8, 8), sae("topk", 4, 4), sae("topk", 16, 16)]
    points = Points(saes, [score(one, 0.5) for one in saes])
    found = compare({0: points.question("toy", MCC, "topk", "l1")})[0]
    assert found.verdict == "no verdict"
    assert str(found.reason).startswith(
        "no common L0 in seed 0: the arm's is 4 to 16, the reference's 8"
    )


def test_what_failed_has_no_number_and_what_is_not_there_no_point() -> None:
    saes = [
        sae("l1", None, seed=0, status="failed"),
        sae("l1", 8.0, seed=1, unscored=["ground-truth"]),
        sae("l1", None, seed=2, status="missing"),
        sae("l1", 8.0, seed=3),  # not evaluated yet
        sae("l1", 8.0, seed=4),
        sae("l1", 8.0, seed=5),
    ]
    scores = [score(saes[4], 0.5), score(saes[5], math.nan)]
    assert scores[1].value is None, "as the file of the findings has it"
    points = Points(saes, scores)
    (found,) = points.of("toy", "ground-truth", "mcc", ["l1"]).values()
    assert [point.seed for point in found] == [0, 1, 4, 5]
    assert [point for point in found if point.usable] == [Point(4, 8.0, 0.5)]
    (others,) = points.of("toy", "core", "mcc", ["l1"]).values()
    assert [point.seed for point in others] == [0], "its evaluation by this suite did not fail"


def test_seeds_that_are_compared_with_each_other_are_tested_by_pseudo_values() -> None:
    saes = [sae("l1", 8.0, seed=seed) for seed in (0, 1)]
    scores = [score(one, 0.5, STABILITY, pseudo_value=0.7) for one in saes]
    points = Points(saes, scores)
    place = ("toy", "seeds", "stability", ["l1"])
    assert [p.value for p in points.of(*place)["l1"]] == [0.7, 0.7]
    assert [p.value for p in points.of(*place, shown=True)["l1"]] == [0.5, 0.5]
    assert points.question("toy", STABILITY, "l1", "l1").least_seeds == 3
    assert points.question("toy", MCC, "l1", "l1").least_seeds == 2
