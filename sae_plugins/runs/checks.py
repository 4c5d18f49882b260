"""What can be refused before a model is loaded: sources, devices and memory that are not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.util import str_to_dtype

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.runs.setup import SAELensSettings


def check_devices(settings: SAELensSettings) -> None:
    """Refuse devices that are not there."""
    given = {name: settings.runner.get(name) for name in ("llm_device", "act_store_device")}
    for name, device in {"device": settings.device, **given}.items():
        if device is None or (name, device) == ("act_store_device", "with_model"):
            continue
        if device.startswith("cpu:"):
            raise PluginError(f"--{name} {device}: there is one cpu; give --{name} cpu")
        try:
            torch.zeros(1, device=device).item()  # a "meta" device holds no numbers
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise PluginError(
                f"--{name} {device} cannot be used: {reason}; try --{name} cpu"
            ) from error


def check_memory(settings: SAELensSettings, sae: Any, buffers: Mapping[str, int]) -> None:
    """Refuse what can never fit into memory, by the first flag that asks for more than there is.

    Args:
        settings: the run's.
        sae: the SAE's config.
        buffers: numbers in memory on account of other flags, by flag.
    """
    batch = settings.runner.get("train_batch_size_tokens", 4096)
    numbers = {
        "d_sae": numbers_in_training(sae),
        "train_batch_size_tokens": batch * (3 * sae.d_sae + sae.d_in),
        **buffers,
    }
    there = memory_of(settings.device) / 1e9
    for flag, count in numbers.items():
        needed = count * str_to_dtype(sae.dtype).itemsize / 1e9
        if needed > there:
            raise PluginError(
                f"--{flag} needs {needed:,.0f} GB of memory, and {settings.device} has "
                f"{there:,.0f}: lower it (--d_sae is {sae.d_sae}, the batch {batch} tokens)"
            )


def numbers_in_training(sae: Any) -> int:
    """Numbers that an SAE in training holds between steps, by its config."""
    return int(4 * sae.d_sae * (2 * sae.d_in + 1))  # weights, gradients, Adam's two moments


def memory_of(device: str) -> float:
    """Bytes of memory that a device has, at most."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


_FOLDERS = {
    "resume_from_checkpoint": (
        *(SAE_WEIGHTS_FILENAME, TRAINER_STATE_FILENAME, ACTIVATION_SCALER_CFG_FILENAME),
        ACTIVATIONS_STORE_STATE_FILENAME,
    ),
    "from_pretrained_path": (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME),
    "cached_activations_path": ("dataset_info.json", "state.json"),
}
"""Flags that name a folder to read, and what SAELens looks for in it."""


def check_sources(settings: SAELensSettings) -> None:
    """Refuse a run that does not say where its activations or its checkpoint come from."""
    used = settings.runner.get("use_cached_activations") or None
    if used and not settings.runner.get("cached_activations_path"):
        raise PluginError("--use_cached_activations needs --cached_activations_path FOLDER")
    for name, files in _FOLDERS.items():
        folder = settings.runner.get(name)
        if folder is None or (name, used) == ("cached_activations_path", None):
            continue
        if not Path(folder).is_dir():
            raise PluginError(f"--{name} {folder} is no folder; name another, or leave it out")
        missing = [file for file in files if not (Path(folder) / file).is_file()]
        if missing:
            raise PluginError(
                f"--{name} {folder} lacks {', '.join(missing)}; name another, or leave it out"
            )
    if settings.model_name == world.NAME:
        return
    for name, example in (
        ("hook_name", "--hook_name blocks.6.hook_resid_post"),
        ("dataset_path", "--dataset_path NeelNanda/pile-10k"),
    ):
        if not settings.runner.get(name) and (name, used) != ("dataset_path", True):
            raise PluginError(
                f"--model_name {settings.model_name} needs --{name}, for example {example}"
            )
