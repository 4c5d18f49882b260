"""The notebook keeps its outputs; these say when they are old, and `make notebook` renews them."""

from __future__ import annotations

import copy
import json
import re
import runpy
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import nbformat
import pytest
from snippets import DOCS, blocks

PROGRAM = runpy.run_path(str(DOCS / "notebook.py"))
digest, code_cells = PROGRAM["digest"], PROGRAM["code_cells"]
FILE = PROGRAM["NOTEBOOK"]
OLD = "its outputs are old: run `make notebook`"
OF_A_MACHINE = re.compile(r"(?<![\w.<])/[a-z]+/|[A-Z]:\\\\|\d:\d\d\b|Warning|IProgress", re.I)
"""Absolute paths, times, and what libraries warn of."""


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def shown(output: Any) -> str:
    """What an output says, as text."""
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


def words(output: Any) -> list[str]:
    """The words and the numbers of what it says; borders of tables follow from them."""
    return re.findall(r"\d+(?:\.\d+)?|[^\W\d]+", shown(output))


def kind(output: Any) -> tuple[str, list[str]]:
    return output.output_type, sorted(output.get("data", {}))


def alike(old: str, new: str) -> bool:
    """Whether two words are the same, or numbers that another processor may compute so."""
    if not (old[:1].isdigit() and new[:1].isdigit()):
        return old == new
    return float(old) == pytest.approx(float(new), rel=0.05, abs=0.02)


def differences(kept: Any, fresh: Any) -> Iterator[str]:
    """What the outputs of a notebook say otherwise than those of another run of its code."""
    for old, new in zip(code_cells(kept), code_cells(fresh), strict=True):
        if [*map(kind, old.outputs)] != [*map(kind, new.outputs)]:
            yield f"{old.source!r} has outputs of other kinds"
            continue
        for before, now in zip(old.outputs, new.outputs, strict=True):
            pairs = zip_longest(words(before), words(now), fillvalue="")
            if any(not alike(*pair) for pair in pairs):
                yield f"{shown(before)}\n  is now\n{shown(now)}"


def test_its_outputs_are_those_of_its_code(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert notebook.metadata[PROGRAM["STAMP"]] == digest(notebook), OLD
    numbers = [cell.execution_count for cell in code_cells(notebook)]
    assert numbers == [*range(1, len(numbers) + 1)], OLD
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 4  # tables


def test_its_outputs_are_small_and_say_nothing_of_a_machine(notebook: Any) -> None:
    assert FILE.stat().st_size < 300_000
    for cell in code_cells(notebook):
        assert not {"execution", "scrolled"} & set(cell.metadata)
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            data = {k: v for k, v in output.get("data", {}).items() if k != "image/png"}
            said = OF_A_MACHINE.search(json.dumps([output.get("text"), data]))
            assert not said, f"{cell.source!r} says {said and said[0]}"


@pytest.mark.parametrize(
    ("said", "caught"),
    [
        ("cache     /tmp/x/cache", True),
        ("/home/me/lib.py:3: UserWarning: no", True),
        ("[00:07<00:00]", True),
        ("</td> 3/4 and/or evaluations/results.csv 0.5012", False),
    ],
)
def test_what_is_of_a_machine(said: str, caught: bool) -> None:
    assert bool(OF_A_MACHINE.search(said)) == caught


def test_changed_code_makes_outputs_old(notebook: Any) -> None:
    for number, cell in enumerate(notebook.cells):
        changed = copy.deepcopy(notebook)
        changed.cells[number].source += "\n# more"
        assert (digest(changed) == digest(notebook)) == (cell.cell_type != "code")


def test_other_numbers_make_outputs_old(notebook: Any) -> None:
    assert list(differences(notebook, notebook)) == []
    cells = [cell for cell in code_cells(notebook) if cell.outputs]
    assert len(cells) >= 5
    for old, new, noticed in (("0.742", "0.749", False), ("0.742", "0.642", True),
                              ("life", "strife", True)):  # fmt: skip
        changed = copy.deepcopy(notebook)
        (table,) = [cell.outputs[0] for cell in code_cells(changed) if "topk(10)" in cell.source]
        assert old in table.data["text/plain"]
        table.data["text/plain"] = table.data["text/plain"].replace(old, new)
        assert bool(list(differences(notebook, changed))) == noticed
    changed = copy.deepcopy(notebook)
    code_cells(changed)[-1].outputs = []
    (said,) = differences(notebook, changed)
    assert "outputs of other kinds" in said


def test_its_recipe_is_that_of_the_page_about_steering(notebook: Any) -> None:
    recipe = blocks("python", DOCS / "steering.md")[0]
    shared = recipe[recipe.index("@torch.no_grad()") : recipe.index("print(")]
    assert any(shared in cell.source for cell in code_cells(notebook))


@pytest.mark.slow
def test_it_gives_what_it_shows(notebook: Any) -> None:
    assert "\n".join(differences(notebook, PROGRAM["run"](notebook))) == "", OLD
