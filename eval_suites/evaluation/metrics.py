"""Metrics by name, SUITE/METRIC."""

from __future__ import annotations

from dataclasses import replace

from sae_plugins.eval_suites import registry
from sae_plugins.eval_suites.suite import SCORE, SHARE
from sae_plugins.eval_suites.suite import Metric as SuiteMetric

HELDOUT, TRAINING, SEEDS = "heldout", "training", "seeds"


OF_THE_RUN = (
    SuiteMetric("l0", "L0", "active features per held-out token", "neither", True),
    SuiteMetric("k", "k", "active features per token in training: what L0 should be", "neither"),
    SuiteMetric(
        "explained_variance", "explained variance", "1 - squared error / variance, held out",
        "higher", True, bounds=SCORE, margin=0.01,
    ),
    SuiteMetric("never_fired", "never fired", "share of features that fire on no held-out token",
                "lower", True, bounds=SHARE, margin=0.02),
    SuiteMetric("mse", "squared error",
                "per held-out token, summed over d_in, in the model's own units", "lower"),
    SuiteMetric("cosine", "cosine", "between activations and reconstructions, held out", "higher",
                bounds=(-1.0, 1.0), margin=0.01),
    SuiteMetric("tokens", "held-out tokens", "how many the numbers are of", "neither"),
)  # fmt: skip
"""What every run says of itself, from text that it was not trained on."""
OF_SEEDS = (
    SuiteMetric(
        "stability", "stability",
        "share of features whose decoder row has a cosine above 0.7 with one of another seed's "
        "SAE, mean over the other seeds", "higher", True, bounds=SHARE, margin=0.05,
    ),
)  # fmt: skip
"""What a study says of the SAEs of several seeds together."""


UNRELIABLE = {
    "scr": "SCR separates SAEs of known quality badly, and is noisy (arXiv 2605.18229); with "
    "SAEBench's settings it also ablates padding (docs/evaluation.md)",
    "tpp": "TPP should not be used to rank SAEs (arXiv 2605.18229); with SAEBench's settings it "
    "also ablates padding, which moves the score by more than seeds do (docs/evaluation.md)",
}
"""Suites whose verdicts are not to be relied on, and why."""


def _rows(suite: str) -> tuple[SuiteMetric, ...]:
    ours = {HELDOUT: OF_THE_RUN, SEEDS: OF_SEEDS}
    return ours[suite] if suite in ours else registry.load(suite).metrics


def described(suite: str, name: str) -> SuiteMetric | None:
    """A metric's row in its suite's table, with the number in its name filled in."""
    for row in _rows(suite):
        numbers = row.numbers(name)
        if numbers is not None:
            texts = {part: getattr(row, part) for part in ("paper", "meaning")}
            for number, value in numbers.items():
                texts = {k: text.replace(f"{{{number}}}", value) for k, text in texts.items()}
            return replace(row, **texts)
    return None
