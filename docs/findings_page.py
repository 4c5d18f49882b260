"""The tables of studies, from what `benchmarks/study_tables.py` has kept of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from gallery import RESULTS, findings
from reading import code, methods, numbers, table

from sae_plugins.base.text import arrow
from sae_plugins.study.facts import Facts
from sae_plugins.study.files import load
from sae_plugins.study.findings import Contrast
from sae_plugins.study.words import number

REFERENCE = "l1"
"""The name of plain L1 in studies."""
COUNTED = ("worse", "equivalent", "not distinguishable", "underpowered", "no verdict")


@cache
def studies() -> dict[str, Facts]:
    """What is kept of each study against plain L1, by its name; a part is called STUDY.MODEL."""
    names = [file.name.removesuffix(".json.gz") for file in sorted(RESULTS.glob("*.json.gz"))]
    known = {name: Facts(findings(name), Path()) for name in names}
    return {name: facts for name, facts in known.items() if facts.reference == REFERENCE}


def better(_: str) -> Iterator[str]:
    """A row for each arm and metric with the verdict "better", the largest effects first."""
    rows: dict[tuple[str, ...], list[str]] = {}
    found = [(n, f, c) for n, f in studies().items() for c in f.findings.contrasts]
    found = [one for one in found if one[2].comparison.verdict == "better"]
    for name, facts, contrast in sorted(found, key=_place):
        said = contrast.comparison
        assert said.difference is not None
        assert said.interval is not None
        metric = next(m for m in facts.compared(contrast.model) if m.name == contrast.metric)
        low, high = said.interval
        row = [
            code(contrast.model),
            code(contrast.arm),
            f"{facts.label(contrast.model, metric)} {arrow(metric.better)}",
            f"{said.difference:+.3f} [{low:+.3f}, {high:+.3f}]",
            _l0s(said.l0),
            str(said.n),
        ]
        rows.setdefault(tuple(row), []).append(code(name))  # studies share baselines
    heads = ["data", "arm", "metric", "difference [95%]", "L0", "seeds", "study"]
    yield from numbers(table(heads, [[*row, ", ".join(names)] for row, names in rows.items()]))


def others(_: str) -> Iterator[str]:
    """A row for each arm of a method that is better on no metric, and how often it is what else."""
    rows = []
    for name, facts in studies().items():
        members: dict[tuple[str, str], list[str]] = {}
        for contrast in facts.findings.contrasts:
            if facts.arms[contrast.arm].kind in ("method", "ours"):
                place = contrast.model, contrast.arm
                members.setdefault(place, []).append(contrast.comparison.verdict)
        rows += [
            [code(name), code(model), code(arm), *(str(Counter(said)[v] or "") for v in COUNTED)]
            for (model, arm), said in members.items()
            if "better" not in said
        ]
    yield from numbers(table(["study", "data", "arm", *COUNTED], rows))


def _place(found: tuple[str, Facts, Contrast]) -> tuple[str, str, float]:
    _, _, contrast = found
    return contrast.model, contrast.metric, -(contrast.comparison.difference or 0)


def _l0s(l0: tuple[float, float] | None) -> str:
    if l0 is None:
        return ""
    low, high = (number(round(value, 3)) for value in l0)
    return low if low == high else f"{low} to {high}"


def study_tables(name: str) -> Iterator[str]:
    """What `benchmarks/study_tables.py` has measured of a study, or of its parts."""
    parts = (f"{name}.{model}" for model in load(name).models)
    files = [RESULTS / f"{one}.md" for one in (name, *parts)]
    found = [file.read_text("utf-8").rstrip() for file in files if file.is_file()]
    command = "papers" if name in methods() else "tables"
    yield from numbers(["\n\n".join(found) or f"To be measured: `make {command}`."])


TABLES = {
    "better": better,
    "others": others,
    **{
        name.replace("-", "_"): lambda _, name=name: study_tables(name)
        for name in ("quick", "toy", "toy-norm", "ours", "auto-k", "smollm2", *methods())
    },
}
"""By the name of the part that they write."""
