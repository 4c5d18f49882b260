"""What a run takes on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_plugins.runs.setup import Setup
    from sae_plugins.settings.settings import Settings

_FLOAT32_BYTES = 4


def bytes_on_disk(settings: Settings, setup: Setup) -> int:
    """What the SAE takes, twice over, and its checkpoints: a plugin's export edits a copy."""
    config = setup.sae_config
    checkpoints = 0
    if not settings.get("checkpoint_path"):  # which may be another disk
        checkpoints = settings.get("n_checkpoints") + bool(settings.get("save_final_checkpoint"))
    copies = 2 + 3 * checkpoints  # Adam has two moments of every weight
    return int(copies * _FLOAT32_BYTES * config.d_sae * (2 * config.d_in + 3))


def bytes_of_checkpoint(settings: Settings, setup: Setup) -> int:
    """What a checkpoint takes: weights, two moments, a gradient that is held, and the buffer."""
    config = setup.sae_config
    copies = 4 if settings.plan.training.accumulate > 1 else 3
    return int(copies * _FLOAT32_BYTES * config.d_sae * (2 * config.d_in + 3)) + bytes_of_buffer(
        settings, setup
    )


def bytes_of_buffer(settings: Settings, setup: Setup) -> int:
    """What the activations that wait in SAELens' buffer take in a checkpoint."""
    if settings.is_synthetic or settings.get("resume_buffer") != "exact":
        return 0
    contexts, tokens = settings.get("n_batches_in_buffer"), settings.get("context_size")
    return int(_FLOAT32_BYTES * contexts * tokens * setup.sae_config.d_in)
