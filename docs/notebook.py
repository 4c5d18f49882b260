"""Runs the notebook and keeps its outputs in it: `make notebook`.

What differs from run to run is left out: bars and warnings, times, and the folder that it ran in.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("first-sae.ipynb")
STAMP = "outputs_of"
"""Where a notebook's metadata say of which code its outputs are."""


def code_cells(notebook: Any) -> list[Any]:
    """Those that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: Any) -> str:
    """It changes with the code of the cells."""
    sources = [cell.source for cell in code_cells(notebook)]
    return hashlib.sha256(repr(sources).encode()).hexdigest()


def run(notebook: Any) -> Any:
    """The notebook with the outputs of its code, as it runs here and now."""
    fresh = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(
            fresh, timeout=600, kernel_name="python3", resources=place,
            record_timing=False, coalesce_streams=True,
        ).execute()  # fmt: skip
    for cell in code_cells(fresh):
        kept = [output for output in cell.outputs if output.get("name") != "stderr"]
        cell.outputs = [_without(f"{Path(folder).resolve()}/", output) for output in kept]
    fresh.metadata = nbformat.from_dict({**notebook.metadata, STAMP: digest(notebook)})
    return fresh


def _without(words: str, found: Any) -> Any:
    """The same without these words in its texts."""
    if isinstance(found, str):
        return found.replace(words, "")
    if isinstance(found, dict):
        return nbformat.from_dict({key: _without(words, value) for key, value in found.items()})
    return found


if __name__ == "__main__":
    nbformat.write(run(nbformat.read(NOTEBOOK, as_version=4)), NOTEBOOK)
