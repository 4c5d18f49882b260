"""`sae-plugins features` on two runs: what it prints, and where the pages are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sae_plugins.entrypoints.main import main


def test_the_command_makes_pages_and_says_where(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["features", *map(str, runs), "--tokens", "300", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "ordered: " in out
    assert re.search(r"\d% of these have a twin \(median activation cosine 0\.\d\d\)", out)
    assert "open features/ordered-vs-merged/index.html in a browser" in out
    assert Path("features/ordered-vs-merged/index.html").is_file()
    assert "100% comparing features" in err
    assert main(["features", *map(str, runs), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "add --overwrite" in said
    assert "in Python: overwrite=True" in said
