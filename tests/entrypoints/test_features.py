"""`sae-plugins features`: what is wrong with a command is said before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_plugins.entrypoints.main import main


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name one SAE or two, and not 0"),
        ("one two three", "name one SAE or two, and not 3"),
        ("nowhere", "nowhere is no folder; name one, or give RELEASE:SAE_ID"),
        ("heer", "heer is no folder; did you mean 'here'?"),
        ("here --tokens 0", "--tokens 0: at least 1 must be read"),
        ("here --text_column words", "--text_column words: it says how a --dataset_path is read"),
        ("here --device tpu9", "--device tpu9"),
        ("here --token 5", "--token"),
    ],
)
def test_wrong_lines(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["features", *line.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


def test_pages_that_are_there_stay_and_that_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is loaded: the folders of the SAEs are empty."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/one", "runs/two", "features/one-vs-two/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "features/one-vs-two/data/index.js").touch()
    assert main(["features", "runs/one", "runs/two"]) == 2
    said = capsys.readouterr().err
    assert "features/one-vs-two holds feature pages already; add --overwrite" in said


def test_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "--help"]) == 0
    assert "--tokens" in capsys.readouterr().out


def test_a_folder_that_is_taken_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    line = ["features", str(tmp_path / "one"), "--output_path", str(tmp_path)]
    assert main(line) == 2
    assert "holds something else than feature pages" in capsys.readouterr().err
