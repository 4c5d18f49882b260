"""SAEs of dictionary_learning, which SAEBench has loaders for."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.inputs.subjects import first_line
from sae_plugins.eval_suites.saebench.installed import check

FILES = ("config.json", "ae.pt")
"""What dictionary_learning saves."""
CUSTOM_LOADERS = {
    "StandardTrainer": "relu_sae.load_dictionary_learning_relu_sae",
    "StandardTrainerAprilUpdate": "relu_sae.load_dictionary_learning_relu_sae",
    "PAnnealTrainer": "relu_sae.load_dictionary_learning_relu_sae",
    "TopKTrainer": "topk_sae.load_dictionary_learning_topk_sae",
    "BatchTopKTrainer": "batch_topk_sae.load_dictionary_learning_batch_topk_sae",
    "MatryoshkaBatchTopKTrainer": (
        "batch_topk_sae.load_dictionary_learning_matryoshka_batch_topk_sae"
    ),
    "JumpReluTrainer": "jumprelu_sae.load_dictionary_learning_jump_relu_sae",
    "GatedSAETrainer": "gated_sae.load_dictionary_learning_gated_sae",
}
"""By trainer. SAEBench's own table is in a module that imports all its evals."""


def load_dictionary_learning(folder: Path, device: str) -> Any:
    """An SAE of dictionary_learning, by SAEBench's loader and as SAEBench's class.

    Raises:
        SuiteError: the folder holds none that SAEBench knows.
    """
    from transformer_lens.supported_models import MODEL_ALIASES

    config_file, weights_file = (folder / name for name in FILES)
    try:
        trainer = json.loads(config_file.read_text("utf-8"))["trainer"]
        kind, model, layer = trainer["trainer_class"], trainer["lm_name"], trainer["layer"]
    except (ValueError, KeyError, TypeError) as error:
        raise SuiteError(
            f"{config_file} is no config of dictionary_learning, or is damaged "
            f"({first_line(error)})"
        ) from error
    if kind not in CUSTOM_LOADERS:
        raise SuiteError(
            f"{folder} was trained by {kind}, which SAEBench has no loader for; it has them for "
            f"{', '.join(CUSTOM_LOADERS)}"
        )
    place = str(trainer.get("submodule_name") or "resid_post")
    if not place.startswith("resid_post"):
        raise SuiteError(
            f"{folder} was trained on {place}; SAEBench takes every SAE of dictionary_learning for "
            "one of the residual stream after a layer"
        )
    try:
        # What this accepts holds tensors only, so that SAEBench can load it in its own way.
        torch.load(weights_file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's many
        raise SuiteError(
            f"{weights_file} is damaged, or holds more than tensors and is not opened for that "
            f"({first_line(error)})"
        ) from error
    short = model.rpartition("/")[2]
    # as TransformerLens and SAEBench's tables call it
    name = short if short in MODEL_ALIASES.get(model, ()) else model
    check(f"{folder}, an SAE of dictionary_learning,")
    try:
        return _load(kind, config_file, weights_file, name, layer, device)
    except Exception as error:  # its asserts, and whatever a misfit raises
        raise SuiteError(
            f"{folder} cannot be loaded by SAEBench as the SAE of a {kind}: {first_line(error)}"
        ) from error


def _load(
    trainer: str, config: Path, weights: Path, model_name: str, layer: int, device: str
) -> Any:
    """What SAEBench's loader for a trainer makes of two files.

    It unpickles the weights, which the caller has found to hold tensors only.
    """
    module_name, _, function = CUSTOM_LOADERS[trainer].partition(".")
    module = importlib.import_module(f"sae_bench.custom_saes.{module_name}")
    local = {file.name: str(file) for file in (config, weights)}
    with (
        replaced(module, hf_hub_download=lambda filename, **_: local[filename]),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        return getattr(module, function)(
            repo_id="",
            filename=weights.name,
            layer=layer,
            model_name=model_name,
            device=torch.device(device),
            dtype=torch.float32,
        )
