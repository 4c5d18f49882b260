"""Merging of similar features: the pairs, the arithmetic, what becomes of the second feature."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_plugins import Plugin, PluginError, hookimpl, plugins
from sae_plugins.framework.features import Merged
from sae_plugins.mechanisms import merge
from sae_plugins.mechanisms.merge import Merge, disjoint_pairs, firing_overlap, similar_pairs
from sae_plugins.testing import (
    CASES,
    D_SAE,
    PluginContract,
    advance,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)

WINDOW = {"firing-window": {"window": 4}}


class WindowedContract(PluginContract):
    """The contract, with a window that is short enough for its runs."""

    def _options(self) -> Any:
        return {**super()._options(), **WINDOW}


class TestContract(WindowedContract):
    plugin = Merge
    options = {"every": 3, "threshold": 0.6}


class TestAutoByBoth(WindowedContract):
    plugin = Merge
    options = {"every": 4, "threshold": 0.4, "similarity": "both", "arithmetic": "auto"}


class TestSilencing(WindowedContract):
    plugin = Merge
    options = {"every": 4, "threshold": 0.5, "similarity": "encoder", "other": "silence"}


@pytest.mark.parametrize("contract", [TestContract, TestAutoByBoth, TestSilencing])
@pytest.mark.parametrize("architecture", CASES)
def test_the_contracts_do_merge(architecture: str, contract: Any) -> None:
    if contract is TestSilencing and architecture.endswith("topk"):
        with pytest.raises(PluginError, match=r"choose --merge\.other resample"):
            train(Merge, architecture=architecture, options={"merge": contract.options})
        return
    options = {"merge": contract.options, **WINDOW}
    trainer = train(Merge, architecture=architecture, options=options)
    assert trainer.run.summary["merge/features"] > 0


# -- the pairs ---------------------------------------------------------------------------------


@st.composite
def dictionaries(draw: st.DrawFn) -> torch.Tensor:
    """Rows in clusters, with exact duplicates, opposites, other lengths and zeros among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    centres = torch.randn(draw(st.integers(1, 4)), 6, generator=generator)
    places = st.integers(0, len(centres) - 1)
    rows = []
    for _ in range(draw(st.integers(0, 30))):
        row = centres[draw(places)] * draw(st.sampled_from([1.0, 1.0, 3.0, -1.0, 0.0]))
        noise = draw(st.sampled_from([0.0, 0.0, 0.2, 0.5]))
        rows.append(row + noise * torch.randn(6, generator=generator))
    return torch.stack(rows) if rows else torch.zeros(0, 6)


def brute_force(matrices: Sequence[torch.Tensor], index: list[int], threshold: float) -> list:
    """The greedy pairs, literally."""

    def cosine(matrix: torch.Tensor, i: int, j: int) -> float:
        a, b = matrix[index[i]].double(), matrix[index[j]].double()
        norms = (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-300)
        return float((a * b).sum() / norms)

    ranked = []
    for i, j in itertools.combinations(range(len(index)), 2):
        least = min(cosine(matrix, i, j) for matrix in matrices)
        if least > threshold:
            ranked.append((-least, i, j))
    taken, chosen = set(), []
    for _, i, j in sorted(ranked):
        if i not in taken and j not in taken:
            taken |= {i, j}
            chosen.append([i, j])
    return chosen


@given(
    rows=dictionaries(),
    tile=st.sampled_from([1, 2, 3, 7, 1024]),
    threshold=st.sampled_from([0.3, 0.9, 0.99]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_greedy_pairs_equal_brute_force_whatever_the_tiles(
    rows: torch.Tensor, tile: int, threshold: float, data: st.DataObject
) -> None:
    index = data.draw(st.permutations(range(len(rows))))
    index = index[: data.draw(st.integers(0, len(index)))]
    matrices = [rows] if data.draw(st.booleans()) else [rows, rows.flip(1)[:, :4].contiguous()]
    pairs, cosines = similar_pairs(matrices, torch.tensor(index).long(), threshold, tile=tile)
    assert disjoint_pairs(pairs, cosines).tolist() == brute_force(matrices, index, threshold)


def test_the_cheap_cosines_miss_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(80, 64, generator=generator)
    rows = rows[torch.randint(0, 80, (80,), generator=generator)] + 0.5 * rows
    expected = brute_force([rows], list(range(80)), 0.8)
    assert len(expected) > 10
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        monkeypatch.setattr(
            merge,
            "_unit",
            lambda matrix, i, dtype=dtype: torch.nn.functional.normalize(matrix[i], dim=1).to(
                dtype
            ),
        )
        pairs, cosines = similar_pairs([rows], torch.arange(80), 0.8, tile=30)
        assert disjoint_pairs(pairs, cosines).tolist() == expected


def test_of_equal_cosines_the_first_features_pair() -> None:
    rows = torch.ones(5, 3)
    pairs, cosines = similar_pairs([rows], torch.arange(5), 0.9)
    assert len(pairs) == 10
    assert disjoint_pairs(pairs, cosines).tolist() == [[0, 1], [2, 3]]


def test_a_collapsed_dictionary_does_not_take_all_memory(caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.ones(400, 3)
    pairs, _ = similar_pairs([rows], torch.arange(400), 0.9, tile=64)
    assert len(pairs) == 64 * 400 < 400 * 399 / 2
    assert "the rest waits" in caplog.text


def test_firing_overlap_is_the_jaccard_index() -> None:
    one = torch.tensor([[1.0, 0, 0], [1, -2, 0], [0, 3, 0]])
    other = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 2, 0]])
    assert firing_overlap(one, other).tolist() == [0.5, 1, 0]


# -- in training -------------------------------------------------------------------------------


class Spy(Plugin):
    """Notes what was merged and when, and what the SAE does with the batch before and after."""

    name = "spy"
    after = ("merge",)

    @hookimpl
    def attached(self):
        self.merged: list[tuple[int, list[int], list[int]]] = []

    @hookimpl
    def step_ended(self, run, output):
        self.batch = output.sae_in
        self.before = run.sae(self.batch).detach()
        self.live = int((run.sae.encode(self.batch) != 0).any(dim=0).sum())
        self.weights = {name: p.detach().clone() for name, p in run.sae.named_parameters()}

    @hookimpl
    def features_changed(self, run, change):
        assert isinstance(change, Merged)
        self.merged.append((run.step, change.into.tolist(), change.source.tolist()))
        self.output = run.sae(self.batch).detach()


def merged(
    duplicates: dict[int, int],
    *,
    architecture: str = "standard",
    steps: int = 2,
    accumulate: int = 1,
    noise: float = 0.0,
    **options: Any,
) -> tuple[Any, Any]:
    """Train a SAE in which one feature is made a copy of another."""
    options = {"every": 2, "stop": None, **options}
    batches = tiny_batches(steps=steps, dtype=torch.float64)
    sae = tiny_sae(architecture, dtype=torch.float64, l1_coefficient=1e-3)
    with plugins(
        Merge,
        Spy,
        options={"merge": options, **WINDOW},
        training={"accumulate": accumulate},
    ):
        trainer = tiny_trainer(sae, batches, lr=1e-6)
    with torch.no_grad():
        for name, axis in trainer.run.architecture.feature_axes.items():
            data = dict(sae.named_parameters())[name].data.movedim(axis, 0)
            for copy, original in duplicates.items():
                data[copy] = data[original]
        sae.W_dec[list(duplicates)] += noise
    advance(trainer, batches)
    trainer.set_final_sae_metadata()
    return trainer, trainer.run.plugin("spy")


@pytest.mark.parametrize("architecture", ["standard", "gated"])
@pytest.mark.parametrize("arithmetic", ["sum", "auto"])
def test_exact_duplicates_merged_by_their_sum_keep_the_reconstruction(
    arithmetic: str, architecture: str
) -> None:
    _, spy = merged(
        {11: 2, 4: 9}, architecture=architecture, arithmetic=arithmetic, other="silence"
    )
    assert [(step, sorted(zip(into, of, strict=True))) for step, into, of in spy.merged] == [
        (2, [(2, 11), (4, 9)])
    ]
    torch.testing.assert_close(spy.output, spy.before, atol=1e-6, rtol=0)


def test_the_papers_average_halves_what_exact_duplicates_wrote() -> None:
    trainer, spy = merged({11: 2}, other="silence")
    probe, weights = spy.batch, spy.weights

    def wrote(features: list[int]) -> torch.Tensor:
        b_dec = trainer.sae.cfg.apply_b_dec_to_input * weights["b_dec"]
        acts = torch.relu((probe - b_dec) @ weights["W_enc"] + weights["b_enc"])
        return acts[:, features] @ weights["W_dec"][features]

    assert wrote([2, 11]).abs().max() > 0.01
    torch.testing.assert_close(spy.before - spy.output, wrote([2, 11]) / 2, atol=1e-6, rtol=0)


def test_merged_features_are_no_pair_any_more_and_one_fewer_is_alive() -> None:
    trainer, spy = merged({11: 2, 4: 9}, noise=1e-3, other="silence")
    (_, into, source) = spy.merged[0]
    both = torch.tensor(into + source)
    assert len(similar_pairs([spy.weights["W_dec"]], both, 0.9)[0]) == 2
    assert len(similar_pairs([trainer.sae.W_dec.data], both, 0.9)[0]) == 0
    acts = trainer.sae.encode(spy.batch)
    assert not acts[:, source].any()
    assert (acts != 0).any(dim=0).sum() == spy.live - 2
    assert trainer.run.summary["merge/features"] == 2


def test_the_other_feature_is_resampled_from_the_batch() -> None:
    trainer, spy = merged({11: 2})
    candidates = spy.batch - spy.weights["b_dec"]
    cosines = torch.cosine_similarity(trainer.sae.W_dec.data[11], candidates, dim=1)
    assert cosines.max() == pytest.approx(1, abs=1e-9)


def test_features_that_do_not_fire_are_left_alone() -> None:
    class Silence(Plugin):
        name = "silence"

        @hookimpl
        def attached(self, run):
            run.sae.b_enc.data[11] = -1e3

    batches = tiny_batches(steps=2, dtype=torch.float64)
    with plugins(Silence, Merge, Spy, options={"merge": {"every": 2, "stop": None}, **WINDOW}):
        sae = tiny_sae("standard", dtype=torch.float64)
        sae.W_dec.data[11] = sae.W_dec.data[2]
        trainer = tiny_trainer(sae, batches)
    advance(trainer, batches)
    assert trainer.run.plugin("spy").merged == []


def test_a_request_inside_an_accumulation_window_waits_for_its_end() -> None:
    _, spy = merged({11: 2}, steps=6, accumulate=3, every=4)
    assert [step for step, _, _ in spy.merged] == [6]


def test_it_stops_at_a_step_or_a_share_of_the_training() -> None:
    for stop, expected in ((0.5, [4]), (0.49, []), (4, [4]), (3, []), (None, [4])):
        _, spy = merged({11: 2}, steps=8, every=4, stop=stop)
        assert [step for step, _, _ in spy.merged] == expected


def test_by_encoder_columns_or_by_both() -> None:
    """A copy of the decoder row alone."""
    batches = tiny_batches(steps=2, dtype=torch.float64)
    for similarity, expected in (("decoder", 1), ("encoder", 0), ("both", 0)):
        options = {"merge": {"every": 2, "stop": None, "similarity": similarity}, **WINDOW}
        sae = tiny_sae("standard", dtype=torch.float64, l1_coefficient=1e-3)
        sae.W_enc.data = torch.randn(sae.W_enc.shape, dtype=torch.float64) / 4
        sae.W_dec.data[11] = sae.W_dec.data[2]
        with plugins(Merge, Spy, options=options):
            trainer = tiny_trainer(sae, batches, lr=1e-6)
        advance(trainer, batches)
        assert len(trainer.run.plugin("spy").merged) == expected


@pytest.mark.parametrize("architecture", CASES)
def test_merges_on_every_architecture_and_the_inner_prefix_keeps_the_feature(
    architecture: str,
) -> None:
    options = {"merge": {"every": 3, "threshold": 0.5, "stop": None}, **WINDOW}
    batches = tiny_batches(steps=6)
    with plugins(Merge, Spy, options=options):
        trainer = tiny_trainer(tiny_sae(architecture), batches)
    advance(trainer, batches)
    found = trainer.run.plugin("spy").merged
    assert found
    for _, into, source in found:
        assert all(one < other < D_SAE for one, other in zip(into, source, strict=True))
