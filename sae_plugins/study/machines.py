"""The machines that a study's SAEs were trained on, and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sae_plugins.study.told import reports
from sae_plugins.study.words import differing


def machines(folder: Path, saes: Iterable[str]) -> dict[str, list[str]]:
    """What their machines are, by fact: {"threads": ["1", "2"]}; empty where no task has told it.

    Args:
        folder: the study's.
        saes: the names of SAEs' folders.
    """
    wanted, found = set(saes), dict[str, set[str]]()
    for told in reports(folder).values():
        if wanted.intersection(told.saes):
            for name, value in told.facts.get("machine", {}).items():
                found.setdefault(name, set()).add(str(value))
    return {name: sorted(found[name]) for name in sorted(found)}


def warnings(found: Mapping[str, list[str]]) -> Iterator[str]:
    """Whether SAEs come from machines on which the last bits of numbers are others."""
    if mixed := differing(found):
        yield (
            f"SAEs were trained on machines that differ: {mixed}; trained again on "
            "another one, an SAE differs in the last digits"
        )
