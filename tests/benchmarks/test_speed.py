"""The benchmarks of steps: what they compare, and what they say of what cannot be had."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_plugins.framework.architectures import HAVING_A_FAST_STEP

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _among_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_ratio_is_the_median_over_rounds_and_a_budget_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import harness

    now = 0.0

    def takes(*seconds: float) -> Any:
        left = iter(seconds)

        def work() -> None:
            nonlocal now
            now += next(left)

        return work

    clock = SimpleNamespace(process_time=lambda: now, monotonic=lambda: now)
    monkeypatch.setattr(harness, "time", clock)
    (ratio,) = harness.interleave(takes(*[1] * 8), {"arm": takes(9, 2, 3, 4)}, rounds=3)
    assert (ratio.ratio, ratio.rounds) == (3, 3)
    assert (ratio.seconds, ratio.baseline) == (3, 1)
    assert 2 <= ratio.low <= 3 <= ratio.high <= 4
    (ratio,) = harness.interleave(takes(*[1] * 8), {"arm": takes(9, 2, 3, 4)}, 3, budget=1)
    assert ratio.rounds == 2


def test_what_stands_in_for_a_package_has_all_names_and_is_false(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from standins import stand_in

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    stand_in("nobody_has_this")
    made = importlib.import_module("nobody_has_this.inner")
    for name in ("nobody_has_this", "nobody_has_this.inner"):
        monkeypatch.delitem(sys.modules, name)
    assert not made.is_available()
    assert not (made.Thing[int] | None).other(1, at=2)

    with pytest.raises(AttributeError):
        _ = made.__version__
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nobody_has_that")


def test_a_library_that_cannot_be_installed_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import peers

    failed = SimpleNamespace(returncode=1, stderr="a note\nERROR: No matching distribution\n")
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(peers.PeerMissing, match=r"sparsify==1.* left out.*No matching distrib"):
        peers.steps_of_peer("sparsify", 16, 4, [])


@pytest.mark.ci
def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import speed

    monkeypatch.setitem(speed.SHAPES, "4096", (16, 64, 32))
    monkeypatch.setitem(speed.SHAPES, "2304", (16, 64, 32))
    monkeypatch.setattr("bench_step.L0", 4)
    first, other = (speed.measured(name, 2, [], []) for name in ("4096", "2304"))
    names = {row["arm"] for row in first["time"]}
    ours = {f"{name}, fast" for name in HAVING_A_FAST_STEP}
    assert ours | {"topk, SAELens", "topk, fast, bf16", "standard, fast, half fire"} <= names
    assert {"topk, fast, reorder", "both methods, fast", "floor, few pairs"} <= names
    assert {row["arm"] for row in other["time"]} == {n for n in names if "SAELens" not in n}
    assert {row["arm"] for row in other["memory"]} >= ours
    for row in (*first["time"], *first["memory"]):
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0
