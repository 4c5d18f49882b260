"""The learning rates of arms: which is the best, and what is said of it."""

from __future__ import annotations

import pytest

from sae_plugins.study.tuning import Tried, Tuned, in_words


def tuned(scores: dict[float, list[float | None]], arm: str = "l1") -> Tuned:
    tried = [Tried(lr=lr, scores=of) for lr, of in scores.items()]
    return Tuned(model="toy", arm=arm, l0=8, tried=tried)


def test_the_best_rate_is_that_of_the_largest_mean() -> None:
    found = tuned({0.001: [0.5, 0.9], 0.002: [0.8, 0.8], 0.004: [0.95, 0.1]})
    assert (found.best, found.edge, found.warning) == (0.002, None, None)


def test_a_rate_that_failed_once_is_not_the_best() -> None:
    assert tuned({0.001: [0.1, 0.1], 0.002: [0.9, None], 0.004: []}).best == 0.001


@pytest.mark.parametrize(
    ("best", "edge", "more"), [(0.001, "smallest", "smaller"), (0.004, "largest", "larger")]
)
def test_an_optimum_at_the_edge_is_flagged(best: float, edge: str, more: str) -> None:
    found = tuned({lr: [1.0 if lr == best else 0.5] for lr in (0.001, 0.002, 0.004)})
    assert found.edge == edge
    assert found.warning == (
        f"toy, l1: the best learning rate, {best:g}, is the {edge} that was tried: the true best "
        f"may lie beyond; add {more} ones under tune"
    )


def test_a_study_without_tuning_says_so() -> None:
    rates = {"l1": 0.003, "topk": 0.003, "faster": 0.009}
    assert in_words({**rates, "faster": 0.003}, {}) == (
        "with one learning rate for all arms, 0.003, which was tuned for none of them"
    )
    assert in_words(rates, {}) == (
        "with one learning rate for all arms, 0.003 (but 0.009 for faster), which was tuned for "
        "none of them"
    )
    assert in_words({}, {}) == ""


def test_who_was_not_tuned_is_said() -> None:
    rates = {"l1": 0.001, "topk": 0.004, "faster": 0.009}
    some = {arm: tuned({0.001: [1.0], 0.002: [0.5]}, arm) for arm in ("l1", "topk")}
    assert in_words(rates, some) == (
        "each at the best learning rate of those that its pilots tried (but faster at 0.009, "
        "untuned)"
    )
    del rates["faster"]
    text = "each at the best learning rate of those that its pilots tried"
    assert in_words(rates, some) == text
