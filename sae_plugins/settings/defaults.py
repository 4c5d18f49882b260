"""The defaults of a run by its model, since SAELens' own suit none of ours."""

from __future__ import annotations

from typing import Any

from sae_plugins.base.errors import CLEAR, PluginError, did_you_mean, nearest
from sae_plugins.world import NAME as WORLD
from sae_plugins.world.synthetic_models import SYNTHETIC

WORLD_DEFAULTS: dict[str, Any] = {
    "hook_name": "blocks.1.hook_resid_post",
    "is_dataset_tokenized": False,
    "streaming": False,
    "training_tokens": 1_000_000,
    "train_batch_size_tokens": 1024,
    "context_size": 128,
    "store_batch_size_prompts": 32,
    "n_batches_in_buffer": 256,
    "normalize_activations": "expected_average_only_in",
    "n_batches_for_norm_estimate": 32,
    "lr": 1e-3,
    "l1_coefficient": 2.0,
    "l0_coefficient": 2.0,
    "k": 32,
    "dead_feature_window": 200,
    "feature_sampling_window": 500,
    "device": "cpu",
}
"""For the embedded world, where SAELens' defaults are for a hundred times as many tokens."""

SYNTHETIC_DEFAULTS: dict[str, dict[str, Any]] = {
    "toy": {"d_sae": 128, "training_tokens": 576_000, "train_batch_size_tokens": 384, "lr": 3e-3},
    "small": {
        "d_sae": 256,
        "training_tokens": 1_000_000,
        "train_batch_size_tokens": 1024,
        "lr": 3e-3,
    },
}
"""The settings, by flag, with which a synthetic model is meant to be trained on."""
_OF_ALL_SYNTHETIC: dict[str, Any] = {
    "normalize_activations": "expected_average_only_in",
    "n_batches_for_norm_estimate": 50,
    "l1_coefficient": 0.6,
    "l0_coefficient": 0.6,
    "k": 6,
    "dead_feature_window": 200,
    "feature_sampling_window": 500,
    "eval_samples": 50_000,
    "device": "cpu",
}


def model_defaults(model_name: str) -> dict[str, Any]:
    """The defaults, by flag, of runs on a model.

    Raises:
        PluginError: there is no such synthetic model, or the name is ours, misspelt.
    """
    if model_name == WORLD:
        return WORLD_DEFAULTS
    if model_name.startswith(SYNTHETIC):
        return _OF_ALL_SYNTHETIC | _of_preset(model_name.removeprefix(SYNTHETIC))
    ours = [WORLD, *(f"{SYNTHETIC}{name}" for name in SYNTHETIC_DEFAULTS)]
    if "/" not in model_name and nearest(model_name, ours, CLEAR):
        raise PluginError(f"--model_name {model_name}: {did_you_mean(model_name, ours)}")
    return {"is_dataset_tokenized": False, "n_batches_in_buffer": 64}


def _of_preset(name: str) -> dict[str, Any]:
    if name not in SYNTHETIC_DEFAULTS:
        raise PluginError(
            f"--model_name synthetic:{name}: no synthetic model {name!r}: "
            f"{did_you_mean(name, SYNTHETIC_DEFAULTS)}"
        )
    return SYNTHETIC_DEFAULTS[name]
