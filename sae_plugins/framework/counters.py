"""What a trainer counts, and whether counters that were saved are those of one moment of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sae_plugins.base.saelens import TRAINER_COUNTERS

COUNTERS = (
    *TRAINER_COUNTERS,
    *("n_training_steps", "n_training_samples", "n_frac_active_samples"),
    *("started_fine_tuning", "checkpoint_thresholds"),
)
"""What SAELens' trainer counts."""


def check_counters(state: Mapping[str, Any], config: Any) -> None:
    """Refuse a trainer's saved state whose counters contradict its step, or the run's length.

    Args:
        state: a trainer's `state_dict`.
        config: the trainer's.

    Raises:
        ValueError: names a counter that does not fit.
    """
    counters, batch = state["counters"], config.train_batch_size_samples
    steps, samples = counters["n_training_steps"], counters["n_training_samples"]
    window, thresholds = counters["n_frac_active_samples"], counters["checkpoint_thresholds"]
    most = steps + 1  # SAELens' own checkpoints, from which a run may begin, are one step behind
    schedules = {
        name: each["current_step"] for name, each in state["coefficient_schedulers"].items()
    }
    schedules["lr_scheduler"] = state["lr_scheduler"]["last_epoch"]
    adam = [torch.as_tensor(each["step"]) for each in state["optimizer"]["state"].values()]
    passes, firings = (counters[name] for name in reversed(TRAINER_COUNTERS))
    fits = {
        "n_training_steps": type(steps) is int and steps >= 0,
        "n_training_samples": type(samples) is int
        and steps <= samples < config.total_training_samples,
        "n_frac_active_samples": type(window) is int
        and window % batch == 0
        and bool(steps) <= window <= most * batch,
        "started_fine_tuning": type(counters["started_fine_tuning"]) is bool,
        "checkpoint_thresholds": all(type(threshold) is int for threshold in thresholds),
        "n_forward_passes_since_fired": bool(((passes >= 0) & (passes <= most)).all()),
        "act_freq_scores": bool(((firings >= 0) & firings.isfinite()).all()),
        "updates": 0 <= state["run"]["updates"] <= most,
        "the optimizer's step": all(bool((step >= 0) & (step <= most)) for step in adam),
        **{name: steps <= at <= most for name, at in schedules.items()},
    }
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} cannot be those after step {steps!r} of this run")
