"""`benchmarks/gpu.sh` on a CPU: it runs, needs no more than its wheels, and keeps to its time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
WHEELS = [
    line
    for line in (BENCHMARKS / "gpu_wheels.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
]


@pytest.fixture(autouse=True)
def _among_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_wheel_is_pinned() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert [name for name in WHEELS if not re.search(rf"^{name}==", lock, re.M)] == []
    assert sorted(WHEELS) == WHEELS


def test_cases_for_which_no_time_is_left_are_named() -> None:
    from gpu import run

    now, written = 0.0, 0
    results: dict[str, Any] = {}

    def takes(seconds: float) -> dict[str, Any]:
        nonlocal now
        now += seconds
        return {"took": seconds}

    def fails() -> dict[str, Any]:
        raise MemoryError("too large")

    def write() -> None:
        nonlocal written
        written += 1

    parts = {
        "slow": (1.0, {"first": lambda: takes(2), "second": lambda: takes(2)}),
        "failing": (9.0, {"one": fails, "other": lambda: takes(3)}),
    }
    run(parts, 10.0, results, lambda: now, write)
    assert results["slow"]["rows"] == [{"case": "first", "took": 2}]
    assert results["slow"]["left_out"] == ["second"]
    (failed,) = results["failing"]["failed"]
    assert failed == {"case": "one", "error": "MemoryError: too large"}
    assert results["failing"]["rows"] == [{"case": "other", "took": 3}]
    assert written == 4


@pytest.mark.parametrize(
    ("ratios", "found"), [((0.5, 1.5), "3.16%"), ((0.4, 0.8), "nowhere between")]
)
def test_the_crossing_lies_between_shares(ratios: tuple[float, float], found: str) -> None:
    from gpu_table import crossing

    shares = (0.1, 0.01)  # in any order
    rows = [{"share": s, "ratio": [r, r, r]} for s, r in zip(shares, ratios[::-1], strict=True)]
    assert crossing(rows) == found


@pytest.mark.slow
def test_it_runs_on_a_cpu_with_its_wheels_alone(tmp_path: Path) -> None:
    code = f"""
        import runpy, sys
        sys.path.insert(0, {str(BENCHMARKS)!r})
        sys.argv = ["gpu.py", "--device", "cpu", "--tiny", "--output", {str(tmp_path)!r}]
        try:
            runpy.run_path({str(BENCHMARKS / "gpu.py")!r}, run_name="__main__")
        finally:
            modules = [m for m in sys.modules.values() if "site-packages" in str(
                getattr(m, "__file__", None))]
            print("LOADED", *{{m.__name__.split(".")[0] for m in modules}})
    """
    lines = "\n".join(line.removeprefix(" " * 8) for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    for name, part in results["parts"].items():
        assert part["rows"], name
        assert part["failed"] == part["left_out"] == [], name
    assert all(row["passed"] for row in results["parts"]["identity"]["rows"])
    assert all(row["repeats"] for row in results["parts"]["repeat"]["rows"])
    assert [row["as_sae_lens"] for row in results["parts"]["repeat"]["rows"][:2]] == [True, True]
    text = (tmp_path / "results.md").read_text("utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == [*results["parts"]]

    (loaded,) = re.findall(r"^LOADED (.*)$", done.stdout, re.M)
    optional = {"colorama", "dill", "scipy"}  # which tqdm and torch take where they are
    known, carried = packages_distributions(), {*WHEELS, *optional, "sae-plugins"}
    carried |= needed_by("torch")
    found = {canonicalize_name(d) for name in loaded.split() for d in known.get(name, [])}
    assert found - carried == set()


def needed_by(name: str) -> set[str]:
    """A distribution and what it is installed with."""
    needed = {name}
    for line in requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed |= needed_by(canonicalize_name(requirement.name))
    return needed
