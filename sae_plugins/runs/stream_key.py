"""Which runs see the same batches."""

from __future__ import annotations

import json
from dataclasses import fields

from sae_lens.config import LanguageModelSAERunnerConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class

from sae_plugins.runs.setup import SAELensSettings, defaults_of

_OF_ONE_SAE = {known.name for known in fields(SAETrainerConfig)} - {
    *("device", "n_batches_for_norm_estimate")
} | {
    *("sae", "from_pretrained_path", "training_tokens", "output_path"),
    *("compile_sae", "sae_compilation_mode", "n_eval_batches", "eval_batch_size_prompts"),
    *("eval_frequency", "eval_samples", "run_final_eval", "save_synthetic_model"),
    *("resume_from_checkpoint",),
}
"""Settings of a run on which its batches do not depend."""
_OWN = ("model_name", "seed", "text_seed", "heldout_tokens", "data_shards")


def stream_key(settings: SAELensSettings) -> str:
    """What a run's batches depend on, as JSON: runs with equal keys see the same batches.

    That includes how the activations are normalised, since the first batches serve to estimate it,
    and the text that is held out.
    """
    _, sae = get_sae_training_class(settings.architecture)
    values = {**defaults_of(LanguageModelSAERunnerConfig, sae), **settings.sae, **settings.runner}
    known = {known.name for known in fields(LanguageModelSAERunnerConfig)}
    names = ({*known, *settings.runner} - _OF_ONE_SAE) | {"normalize_activations"}
    own = {name: getattr(settings, name) for name in _OWN}
    if values.get("dataset_path"):  # of which more is held out then
        own["unseen_tokens"] = settings.unseen_tokens
    key = {**{name: values.get(name) for name in names}, **own, "device": settings.device}
    return json.dumps(key, sort_keys=True, default=str)
