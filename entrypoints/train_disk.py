"""What a run takes on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_plugins.runs.setup import Setup
    from sae_plugins.settings.settings import Settings

_FLOAT32_BYTES = 4


def bytes_on_disk(settings: Settings, setup: Setup) -> int:
    """What the SAE takes, twice over, and its checkpoints: a plugin's export edits a copy.

    A calibrated one lies there without its calibration, too.
    """
    # a --checkpoint_path may be on another disk
    checkpoints = 0 if settings.get("checkpoint_path") else saelens_checkpoints(settings)
    copies = 2 if settings.plan.training.calibrate_l0 is None else 3
    return copies * _bytes_of_sae(setup) + checkpoints * bytes_of_saelens_checkpoint(setup)


def saelens_checkpoints(settings: Settings) -> int:
    """How many checkpoints SAELens writes."""
    return int(settings.get("n_checkpoints")) + bool(settings.get("save_final_checkpoint"))


def bytes_of_saelens_checkpoint(setup: Setup) -> int:
    """What a checkpoint of SAELens takes: Adam has two moments of every weight."""
    return 3 * _bytes_of_sae(setup)


def _bytes_of_sae(setup: Setup) -> int:
    config = setup.sae_config
    return int(_FLOAT32_BYTES * config.d_sae * (2 * config.d_in + 3))


def most_checkpoints(settings: Settings) -> int:
    """How many checkpoints to go on from are there at most: one more than stay, while written."""
    return settings.get("keep_checkpoints") + 1 if settings.is_saved_regularly else 1


def bytes_of_checkpoint(settings: Settings, setup: Setup) -> int:
    """What a checkpoint takes: weights, two moments, a gradient that is held, and the buffer."""
    copies = 4 if settings.plan.training.accumulate > 1 else 3
    return copies * _bytes_of_sae(setup) + bytes_of_buffer(settings, setup)


def bytes_of_buffer(settings: Settings, setup: Setup) -> int:
    """What the activations that wait in SAELens' buffer take in a checkpoint."""
    if settings.is_synthetic or settings.get("resume_buffer") != "exact":
        return 0
    contexts, tokens = settings.get("n_batches_in_buffer"), settings.get("context_size")
    return int(_FLOAT32_BYTES * contexts * tokens * setup.sae_config.d_in)
