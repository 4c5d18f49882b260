"""The results of `gpu.py` as Markdown."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

Row = dict[str, Any]


def markdown(results: Row) -> str:
    """All parts as tables, what was left out, and what failed."""
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines = ["# On a GPU", "", f"{machine}; {results['seconds']} s in all."]
    if results["tiny"]:
        lines += ["", "**Tiny shapes, to try the script: the numbers say nothing.**"]
    for name, part in results["parts"].items():
        lines += ["", f"## {name}", ""]
        lines += TABLES[name](part["rows"]) if part["rows"] else ["Nothing was measured."]
        lines += ["", f"Left out for lack of time: {'; '.join(part['left_out'])}."] * bool(
            part["left_out"]
        )
        lines += [f"- **failed** {f['case']}: {f['error']}" for f in part["failed"]]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table's lines."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def interval(ratio: Sequence[float]) -> str:
    """A ratio and its 95% interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*ratio)


def _identity(rows: list[Row]) -> list[str]:
    cells = [(row["case"], row["passed"], row["skipped"]) for row in rows]
    return table(("test", "passed", "skipped"), cells)


def _repeat(rows: list[Row]) -> list[str]:
    yes = {True: "yes", False: "no"}
    cells = [(row["case"], yes[row["repeats"]], yes[row["as_sae_lens"]]) for row in rows]
    return table(("run", "repeats bit for bit", "bitwise SAELens' step"), cells)


def _operations(rows: list[Row]) -> list[str]:
    names = rows[0]["ms"]
    cells = [(name, *(f"{row['ms'][name]:.3f}" for row in rows)) for name in names]
    return table(("milliseconds", *(row["case"] for row in rows)), cells)


def _crossover(rows: list[Row]) -> list[str]:
    head = ("share that fires", *dict.fromkeys(row["precision"] for row in rows))
    found = {(row["share"], row["precision"]): interval(row["ratio"]) for row in rows}
    shares = dict.fromkeys(row["share"] for row in rows)
    cells = [(f"{share:.1%}", *(found.get((share, p), "") for p in head[1:])) for share in shares]
    crossings = (crossing([r for r in rows if r["precision"] == p]) for p in head[1:])
    return ["Pairs that fire over all pairs.", "", *table(head, [*cells, ("equal at", *crossings)])]


def crossing(rows: list[Row]) -> str:
    """The share at which both take the same time, between those measured."""
    points = sorted((row["share"], row["ratio"][0]) for row in rows)
    for (low, below), (high, above) in pairwise(points):
        if below < 1 <= above:
            part = (1 - below) / (above - below)
            return f"{math.exp(math.log(low) + part * math.log(high / low)):.2%}"
    return "nowhere between"


def _methods(rows: list[Row]) -> list[str]:
    arms = rows[0]["ratios"]
    cells = [(row["case"], *(interval(row["ratios"][arm]) for arm in arms)) for row in rows]
    return ["Time over SAELens' without plugins, TF32.", "", *table(("method", *arms), cells)]


def _coactivation(rows: list[Row]) -> list[str]:
    cells = [
        (
            row["case"],
            interval(row["ratio"]),
            f"{row['ms']['arm']:.1f}",
            f"{row['mib']['peak']:.0f}",
            f"{row['mib']['activations']:.0f}",
        )
        for row in rows
    ]
    head = ("", "over SAELens' step, TF32", "ms", "peak MiB", "activations MiB")
    return ["What the top 0.5% of all pairs add to a step.", "", *table(head, cells)]


def _steps(rows: list[Row]) -> list[str]:
    head = ("architecture", "d_sae", "precision", "fast / SAELens' (95% interval)", "pairs")
    head += ("tokens/s, SAELens", "tokens/s, fast", "peak MiB, SAELens", "fast", "L0")
    cells = [
        (
            *(row["architecture"], row["d_sae"], row["precision"], interval(row["ratio"])),
            "that fire" if row["sparse"] else "all",
            f"{row['tokens_per_second']['baseline']:,.0f}",
            f"{row['tokens_per_second']['arm']:,.0f}",
            *(f"{row['peak_mib'][side]:,.0f}" for side in ("SAELens", "fast")),
            f"{row['l0']:.0f}",
        )
        for row in rows
    ]
    return table(head, cells)


TABLES = {
    "identity": _identity,
    "repeat": _repeat,
    "operations": _operations,
    "crossover": _crossover,
    "methods": _methods,
    "coactivation": _coactivation,
    "steps": _steps,
}
