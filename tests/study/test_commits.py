"""A study reads the Hub at commits that were looked up once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hub import LoopbackHub

from sae_plugins.study import commits
from sae_plugins.study.spec import Study


def study(**train: Any) -> Study:
    train = {"recipe": "baseline-demo", "dataset_path": "me/text", **train}
    models = {"world": {"train": train, "sparsity": {"l1_coefficient": [1]}, "suites": {}}}
    return Study.model_validate({"reference": "l1", "models": models, "arms": {"l1": {}}})


def flags(**train: Any) -> dict[str, Any]:
    return {"dataset_path": "me/text", **train}


def test_commits_are_looked_up_once_and_again_for_another_question(
    loopback_hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loopback_hub.here(monkeypatch, None)
    rows, folder = tmp_path / "rows", tmp_path / "study"
    rows.mkdir()
    folder.mkdir()
    (rows / "train.jsonl").write_text("1")
    with caplog.at_level(logging.WARNING):
        commits.look_up(study(), folder)
    assert "me/text" in caplog.text
    assert not (folder / commits.FILE).exists(), "nobody knows such a dataset"
    first = loopback_hub.add("me/text", rows)
    commits.look_up(study(), folder)
    assert commits.known(folder, "world", flags()) == {"dataset_revision": first}
    (rows / "train.jsonl").write_text("2")
    second = loopback_hub.add("me/text", rows)
    loopback_hub.add("me/text", rows, branch="v2")
    commits.look_up(study(), folder)
    assert commits.known(folder, "world", flags()) == {"dataset_revision": first}
    asked = flags(dataset_revision=second)
    assert commits.known(folder, "world", asked) == {}
    commits.look_up(study(dataset_revision=second), folder)
    assert commits.known(folder, "world", asked) == {"dataset_revision": second}
    (folder / commits.FILE).write_text("[")
    assert commits.known(folder, "world", asked) == {}
