"""What is counted of features that are known, on SAEs that are made up."""

from __future__ import annotations

import pytest
import torch
from sae_lens.synthetic import Hierarchy, HierarchyNode
from sae_lens.synthetic.evals import compute_classification_metrics
from torch import Tensor

from sae_plugins.eval_suites.true_features import (
    Counts,
    cosines,
    edges,
    matched_latents,
    parts_of_children,
    share_recovered,
)

FEATURES = torch.eye(6, 8)
ACTS = (torch.rand(500, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
PAIRS = [(0, 1)]


def counted(
    decoder: Tensor, codes: Tensor, acts: Tensor = ACTS, pairs: list[tuple[int, int]] = PAIRS
) -> Counts:
    counts = Counts(FEATURES, decoder, pairs)
    for part in (slice(0, 200), slice(200, None)):
        counts.add(acts[part], codes[part])
    return counts


def test_dead_latents_and_duplicates_cost_nothing_where_saelens_f1_follows_them() -> None:
    padding = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    decoder = torch.cat([FEATURES, padding])
    codes = torch.cat([ACTS, torch.zeros(500, 2)], dim=1)
    counts = counted(decoder, codes)
    assert counts.recovered == 1
    assert counts.f1() == (1, 6)
    theirs = compute_classification_metrics(codes, ACTS, decoder, FEATURES)
    assert theirs.f1_score == pytest.approx(0.75)
    twice = counted(torch.cat([FEATURES, FEATURES[:2]]), torch.cat([ACTS, ACTS[:, :2]], dim=1))
    assert twice.f1() == (1, 6)


def test_a_feature_without_a_latent_counts_as_missed() -> None:
    counts = counted(FEATURES[:3], ACTS[:, :3], pairs=[(0, 1), (4, 5), (0, 5), (5, 0)])
    assert counts.recovered == 0.5
    assert counts.f1() == (0.5, 6)
    assert counts.absorption() == (0, 2), "nothing stands in for it; two pairs' child has no latent"


def test_f1_is_that_of_firing_and_a_feature_that_is_never_active_is_left_out() -> None:
    acts, codes = ACTS.clone(), ACTS.clone()
    acts[:, 5] = codes[:, 5] = 0
    acts[:, 0] = torch.arange(500) < 100
    codes[:, 0] = torch.arange(500) < 150  # 100 rightly, 50 wrongly
    value, n = counted(FEATURES, codes, acts).f1()
    assert n == 5
    assert value == pytest.approx((4 + 2 * 100 / 250) / 5)
    assert counted(FEATURES, codes, torch.zeros_like(acts)).f1() == (None, 0)


def test_either_sign_of_a_decoder_row_matches() -> None:
    similar = cosines(FEATURES, -2 * FEATURES.flip(0))
    assert share_recovered(similar) == 1
    assert matched_latents(similar).tolist() == [5, 4, 3, 2, 1, 0]


def absorbing(tilt: float, *, silent: bool) -> Counts:
    """An SAE whose latent of feature 1 holds so much of its parent, feature 0."""
    acts = ACTS.clone()
    acts[:, 1] *= acts[:, 0]  # a child fires only where its parent does
    decoder, codes = FEATURES.clone(), acts.clone()
    decoder[1] += tilt * FEATURES[0]
    if silent:
        codes[:, 0] *= 1 - acts[:, 1]
    return counted(decoder, codes, acts)


def test_absorption_takes_a_silent_parent_and_a_child_that_stands_in() -> None:
    assert absorbing(0.8, silent=True).absorption() == (1, 1)
    assert absorbing(0.8, silent=False).absorption() == (0, 1), "both latents fire"
    assert absorbing(0.2, silent=True).absorption() == (0, 1), "a miss, which nobody makes up for"


def test_absorption_is_a_share_of_the_samples_with_both() -> None:
    acts = torch.zeros(10, 6)
    acts[:8, 0] = acts[:5, 1] = acts[:4, 2] = 1
    codes, decoder = acts.clone(), FEATURES.clone()
    decoder[1] += FEATURES[0]
    codes[:2, 0] = 0
    counts = Counts(FEATURES, decoder, [(0, 1), (0, 2), (0, 3)])
    counts.add(acts, codes)
    # two of five; none, as the second child holds nothing of the parent; the third is never there
    assert counts.absorption() == (pytest.approx((2 / 5 + 0) / 2), 2)


def test_a_child_that_is_close_to_its_parent_holds_nothing_of_it_by_that_alone() -> None:
    features = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0]])
    parent, child, other = *features, torch.tensor([0, 0, 1.0])
    rows = torch.stack([child, -child, child + 0.5 * parent, parent, child + 0.5 * other])
    pairs = torch.tensor([[0, 1]] * len(rows))
    shares, alike = parts_of_children(features, rows, pairs)
    assert shares[:3] == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert alike == pytest.approx([1, 1, 1, 0, (1.25) ** -0.5], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_an_sae_whose_latents_hold_no_child_has_no_absorption(seed: int) -> None:
    """It did not learn what could absorb a parent, which is no merit: no number, rather than 0."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(40, 24, generator=draw)
    pairs = [(parent, child) for parent in range(10) for child in range(10 + parent, 40, 10)]
    acts = (torch.rand(500, 40, generator=draw) < 0.5).float()
    counts = Counts(features, torch.randn(40, 24, generator=draw), pairs)
    counts.add(acts, torch.randn(500, 40, generator=draw).relu())
    assert counts.absorption() == (None, 0)


def test_a_second_latent_of_the_parent_absorbs_nothing() -> None:
    decoder, codes = FEATURES.clone(), ACTS.clone()
    decoder[1] = FEATURES[0] + 0.02 * FEATURES[5]
    codes[:, 0] *= 1 - ACTS[:, 1]
    assert counted(decoder, codes).absorption() == (None, 0)


@pytest.mark.parametrize("tilt", [0.7, 1, 2])
@pytest.mark.parametrize("noise", [0, 0.3])
def test_absorption_does_not_depend_on_how_latents_are_scaled_or_ordered(
    tilt: float, noise: float
) -> None:
    """All children absorb their parents, which have latents of their own."""
    draw = torch.Generator().manual_seed(0)
    features = torch.linalg.qr(torch.randn(40, 40, generator=draw)).Q[:20]
    pairs = [(0, 1), (0, 2), (3, 4), (5, 6)]
    acts = (torch.rand(500, 20, generator=draw) < 0.5).float()
    decoder, codes = features.clone(), acts.clone()
    for parent, child in pairs:
        decoder[child] += tilt * features[parent]
        codes[:, parent] *= 1 - acts[:, child]
    decoder += noise / 40**0.5 * torch.randn(20, 40, generator=draw)
    order = torch.randperm(20, generator=draw)
    scale = (1 + torch.rand(20, 1, generator=draw)) * torch.tensor([1.0, -1.0]).repeat(10)[:, None]
    counts = Counts(features, (decoder * scale)[order], pairs)
    counts.add(acts, codes[:, order])
    assert counts.absorption() == (1, 4)
    perfect = Counts(features, features[order], pairs)
    perfect.add(acts, acts[:, order])
    assert perfect.absorption() == (0, 4)


def test_groups_without_a_feature_hand_their_children_to_the_parent() -> None:
    inner = HierarchyNode(children=[HierarchyNode(3), HierarchyNode(4, [HierarchyNode(5)])])
    group = HierarchyNode(children=[HierarchyNode(2)])
    roots = [HierarchyNode(0, [HierarchyNode(1), inner]), group]
    assert edges(Hierarchy(roots, None)) == [(0, 1), (0, 3), (0, 4), (4, 5)]
    assert edges(None) == []


def test_without_parents_there_is_no_absorption() -> None:
    assert counted(FEATURES, ACTS, pairs=[]).absorption() == (None, 0)
