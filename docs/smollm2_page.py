"""The table of what `benchmarks/smollm2_methods.py` has measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reading import code, numbers, table

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "smollm2.json"
HEADS = {
    "explained_variance": "explained variance",
    "cosine": "cosine",
    "l0": "L0",
    "never_fired": "never fired",
}


def with_bos_and_without(_: str) -> Iterator[str]:
    """A row for each method: its scores, trained with BOS and without."""
    if not RESULTS.exists():
        yield "Not measured yet: `make bos` does."
        return
    results = json.loads(RESULTS.read_text("utf-8"))
    rows: list[dict[str, Any]] = results["rows"]
    of = {(row["method"], row["bos"]): row for row in rows}
    yield f"{results['steps']} steps, one seed, on {results['machine']['date']}:"
    yield ""
    found = [
        [code(method), *(_pair(name, of[method, True], of[method, False]) for name in HEADS)]
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    yield from numbers(table(["method", *HEADS.values()], found))


def _pair(name: str, with_bos: dict[str, Any], without: dict[str, Any]) -> str:
    """A score with BOS, and without it."""
    form = ".1f" if name == "l0" else ".3f"
    return f"{with_bos[name]:{form}} → {without[name]:{form}}"
