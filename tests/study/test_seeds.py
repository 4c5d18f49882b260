"""SAEs of one arm over its seeds: what is kept of their features, and when two seeds are one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_plugins.runs.folder import WEIGHTS
from sae_plugins.study import seeds, stability
from sae_plugins.study.findings import Score, Trained
from sae_plugins.study.traces import DECODER


def sae(folder: Path, seed: int, *, drawn: int | None = None, name: str = WEIGHTS) -> Trained:
    """Rows near those of the unit matrix, as a seed draws them."""
    one = Trained(model="toy", arm="l1", sparsity="k=4", seed=seed, folder=f"saes/toy/{seed}",
                  status="ok")  # fmt: skip
    (folder / one.folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed if drawn is None else drawn)
    rows = np.eye(64) + rng.normal(0, 0.08, (64, 64))
    save_file({"W_dec": rows.astype(np.float32)}, folder / one.folder / name)
    return one


def scores(trained: list[Trained], folder: Path) -> list[Score]:
    return list(seeds.scores(trained, folder, seeds.hashes(trained, folder)))


@pytest.fixture
def three(tmp_path: Path) -> list[Trained]:
    return [sae(tmp_path, 0), sae(tmp_path, 1), sae(tmp_path, 2, name=DECODER)]


def test_a_second_report_matches_no_features(
    three: list[Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matched: list[int] = []
    whole = stability.matched_shares

    def counted(decoders: Any) -> Any:
        matched.append(len(decoders))
        return whole(decoders)

    monkeypatch.setattr(stability, "matched_shares", counted)
    first = scores(three, tmp_path)
    assert [score.n for score in first] == [2, 2, 2]
    assert all(score.value is not None and 0 < score.value < 1 for score in first)
    assert scores(three, tmp_path) == first
    assert matched == [3], "the second time nothing"
    assert len(scores([*three, sae(tmp_path, 3)], tmp_path)) == 4
    sae(tmp_path, 0, drawn=9)
    changed = scores(three, tmp_path)
    assert matched == [3, 4, 3], "another SAE, or one that was changed"
    assert changed != first


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"match": 0.7, "most": 4096, "shares": 7}'])
def test_what_is_kept_of_another_way_or_damaged_does_not_count(
    text: str, three: list[Trained], tmp_path: Path
) -> None:
    first = scores(three, tmp_path)
    kept = json.loads((tmp_path / seeds.KEPT).read_text())
    (tmp_path / seeds.KEPT).write_text(text)
    assert scores(three, tmp_path) == first
    wrong = dict.fromkeys(kept["shares"], 0.123)
    (tmp_path / seeds.KEPT).write_text(json.dumps({**kept, "match": 0.5, "shares": wrong}))
    assert scores(three, tmp_path) == first
    assert json.loads((tmp_path / seeds.KEPT).read_text()) == kept


def test_rows_that_cannot_be_read_have_no_stability(three: list[Trained], tmp_path: Path) -> None:
    two = [score.value for score in scores(three[:2], tmp_path)]
    (tmp_path / three[2].folder / DECODER).write_bytes(b"no tensors")
    for _ in range(2):  # as it is kept, too
        assert [score.value for score in scores(three, tmp_path)] == two
    assert scores(three[1:], tmp_path) == []
    missing = three[0].model_copy(update={"status": "missing"})
    assert scores([missing, three[1]], tmp_path) == []


def test_one_sae_under_two_seeds_is_said(three: list[Trained], tmp_path: Path) -> None:
    known = seeds.hashes(three, tmp_path)
    assert list(seeds.twins(three, known)) == []
    both = [*three, sae(tmp_path, 7, drawn=1)]
    (warning,) = seeds.twins(both, seeds.hashes(both, tmp_path))
    assert warning.startswith("toy, l1: the SAEs of seeds 1 and 7 are the same one")
