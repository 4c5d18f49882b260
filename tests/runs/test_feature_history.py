"""What happened to each feature, against a naive retelling of all changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_plugins.framework.features import FeatureChange, Merged, Permuted, Reset
from sae_plugins.runs.feature_history import FeatureHistory, Past, read_history

D_SAE = 12


def of(*indices: int) -> torch.Tensor:
    return torch.tensor(indices)


def test_numbers_are_those_of_the_saved_sae() -> None:
    history = FeatureHistory(4)
    history.see(600, Reset(of(3)))
    history.see(700, Permuted(of(3, 2, 1, 0)))
    history.see(800, Merged(into=of(0), source=of(2)))
    history.see(800, Permuted(of(1, 0, 2, 3)))
    assert history.found() == {
        0: Past(2),
        1: Past(3, started=600, took=2, took_at=800, times=1),
        2: Past(2, started=800, into=1, into_at=800),
        3: Past(0),
    }


def test_a_feature_that_has_started_again_is_another_one() -> None:
    history = FeatureHistory(4)
    history.see(5, Merged(into=of(0, 3), source=of(1, 2)))
    history.see(6, Reset(of(0)))
    history.see(7, Merged(into=of(1), source=of(2)))
    assert history.found() == {
        0: Past(0, started=6),
        1: Past(1, started=5, took=2, took_at=7, times=1),  # what it had been is in none that is
        2: Past(2, started=7, into=1, into_at=7),
        3: Past(3, took=2, took_at=5, times=1),
    }


def test_a_feature_that_is_silenced_by_a_merge_and_then_restarted_tells_both() -> None:
    history = FeatureHistory(3)
    history.see(5, Merged(into=of(0), source=of(2)))
    history.see(9, Reset(of(2)))
    assert history.found() == {
        0: Past(0, took=2, took_at=5, times=1),
        2: Past(2, started=9, into=0, into_at=5),
    }


def naive(changes: list[tuple[int, FeatureChange]]) -> dict[int, Past]:
    """Objects that are moved about, one by one."""
    features = [{"place": i, "slot": i} for i in range(D_SAE)]

    def start(step: int, place: int) -> None:
        before = features[place]
        kept = {name: before[name] for name in ("slot", "into", "into_at") if name in before}
        features[place] = {**kept, "place": place, "started": step}

    for step, change in changes:
        if isinstance(change, Permuted):
            features = [features[i] for i in change.order.tolist()]
        elif isinstance(change, Reset):
            for i in change.index.tolist():
                start(step, i)
        else:
            for into, source in zip(change.into.tolist(), change.source.tolist(), strict=True):
                start(step, source)
                features[source] |= {"into": features[into], "into_at": step}
                features[into] |= {"took": features[source]["slot"], "took_at": step,
                                   "times": features[into].get("times", 0) + 1}  # fmt: skip
    found = {}
    for number, feature in enumerate(features):
        said = {name: value for name, value in feature.items() if name != "slot"}
        heir = said.pop("into", None)
        said["into"] = next((i for i, each in enumerate(features) if each is heir), None)
        if said["into"] is None:
            said.pop("into_at", None)
        if "took" in said:
            said["took"] = next(i for i, f in enumerate(features) if f["slot"] == said["took"])
        found[number] = Past(**said)
    return {number: past for number, past in found.items() if past != Past(number)}


@pytest.mark.parametrize("seed", range(20))
def test_any_changes(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    changes: list[tuple[int, FeatureChange]] = []
    for step in range(1, 12):
        some = torch.from_numpy(draw.permutation(D_SAE))
        if draw.random() < 0.5:
            changes.append((step, Merged(some[:2], some[2:4])))
        if draw.random() < 0.5:
            changes.append((step, Reset(some[4 : 4 + draw.integers(1, 4)])))
        if draw.random() < 0.5:
            changes.append((step, Permuted(torch.from_numpy(draw.permutation(D_SAE)))))
    history = FeatureHistory(D_SAE)
    for number, (step, change) in enumerate(changes):
        history.see(step, change)
        if number == len(changes) // 2:  # the run is killed, and goes on
            state, history = history.state_dict(), FeatureHistory(D_SAE)
            history.load_state_dict(state)
    assert history.found() == naive(changes)
    history.write(tmp_path / "rows.jsonl")
    assert read_history(tmp_path / "rows.jsonl", D_SAE) == naive(changes)


def test_the_memory_does_not_grow() -> None:
    history = FeatureHistory(1000)
    sizes = set()
    for step in range(1, 300):
        history.see(step, Permuted(torch.randperm(1000)))
        sizes.add(sum(each.nbytes for each in history.kept.values()))
    assert len(sizes) == 1


def test_where_nothing_happens_there_is_neither_memory_nor_a_file(tmp_path: Path) -> None:
    history = FeatureHistory(10**12)
    history.write(tmp_path / "rows.jsonl")
    assert not history.kept
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "row",
    [{"place": 1}, {"feature": 1, "place": 9}, {"feature": 1, "place": "1"}, {"feature": 1},
     {"feature": 1, "place": 1, "into": -1}, {"feature": 1, "place": 1, "more": 2}],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"a row has another form|feature 1: "):
        read_history(tmp_path / "rows.jsonl", 4)
