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
    share_recovered,
    shares_of_parents,
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
    assert counts.absorption()[0] == 0, "nothing stands in for it"


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
    rows = torch.stack([features[1], -features[1], features[1] + 0.5 * features[0]])
    pairs = torch.tensor([[0, 1]] * 3)
    found = shares_of_parents(features, rows, pairs)
    assert found == pytest.approx([0, 0, 0.5], abs=1e-6)


def test_groups_without_a_feature_hand_their_children_to_the_parent() -> None:
    inner = HierarchyNode(children=[HierarchyNode(3), HierarchyNode(4, [HierarchyNode(5)])])
    group = HierarchyNode(children=[HierarchyNode(2)])
    roots = [HierarchyNode(0, [HierarchyNode(1), inner]), group]
    assert edges(Hierarchy(roots, None)) == [(0, 1), (0, 3), (0, 4), (4, 5)]
    assert edges(None) == []


def test_without_parents_there_is_no_absorption() -> None:
    assert counted(FEATURES, ACTS, pairs=[]).absorption() == (None, 0)
