"""The table of the methods on a real language model is that of the results that were written."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    import smollm2_page

    return smollm2_page


def row(method: str, bos: bool, variance: float, l0: float) -> dict[str, object]:
    scores = {"explained_variance": variance, "cosine": 0.9, "l0": l0, "never_fired": 0.25}
    return {"method": method, "bos": bos, **scores}


def test_a_method_has_a_row_with_both_of_its_scores(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(m, bos, 0.5 + bos / 4, 12.34 - bos) for bos in (True, False) for m in ("a", "b")]
    results = {"steps": 300, "machine": {"date": "2026-01-02"}, "rows": rows}
    (tmp_path / "found.json").write_text(json.dumps(results))
    monkeypatch.setattr(page, "RESULTS", tmp_path / "found.json")
    lines = [line for line in page.with_bos_and_without("") if line.startswith("|")]
    head, _, one, other = lines
    assert head == "| method | explained variance | cosine | L0 | never fired |"
    for name, line in (("a", one), ("b", other)):
        said = "| 0.750 → 0.500 | 0.900 → 0.900 | 11.3 → 12.3 | 0.250 → 0.250 |"
        assert line == f"| `{name}` {said}"


def test_without_results_it_says_how_to_get_them(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path / "missing.json")
    (said,) = page.with_bos_and_without("")
    assert "`make bos`" in said
