"""The machines that a study's SAEs and scores come from, and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_plugins.base.files import read_json
from sae_plugins.runs.folder import ORIGIN
from sae_plugins.study.cells import Cell
from sae_plugins.study.words import differing


def of_saes(cells: Iterable[Cell], folder: Path) -> Iterator[Mapping[str, Any]]:
    """The machines that SAEs were trained on, as their files tell it."""
    for cell in cells:
        with suppress(OSError, ValueError, LookupError, TypeError):
            yield from read_json(folder / cell.folder / ORIGIN)["machines"]


def facts(machines: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What machines are, by fact: {"threads": ["1", "2"]}."""
    found: dict[str, set[str]] = {}
    for machine in machines:
        for name, value in machine.items():
            found.setdefault(name, set()).add(str(value))
    return {name: sorted(found[name]) for name in sorted(found)}


def warnings(found: Mapping[str, list[str]], what: str) -> Iterator[str]:
    """Whether SAEs were trained, or evaluated, on machines whose last bits of numbers differ."""
    if mixed := differing(found):
        yield (
            f"SAEs were {what} on machines that differ: {mixed}; {what} again on another one, an "
            "SAE differs in the last digits"
        )
