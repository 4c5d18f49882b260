"""What can be refused before a model is loaded: sources and devices that are not there."""

from __future__ import annotations

from pathlib import Path

from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)

from sae_plugins import world
from sae_plugins.base.devices import check_device
from sae_plugins.base.errors import PluginError
from sae_plugins.runs.places import check_places
from sae_plugins.runs.setup import SAELensSettings


def check_devices(settings: SAELensSettings) -> None:
    """Refuse devices that are not there."""
    given = {name: settings.runner.get(name) for name in ("llm_device", "act_store_device")}
    for name, device in {"device": settings.device, **given}.items():
        if device is None or (name, device) == ("act_store_device", "with_model"):
            continue
        check_device(name, device)


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
    """Refuse a run that does not say where its activations or its checkpoint come from.

    Raises:
        PluginError: it does not, or what it names is not there.
    """
    check_places({"model_name": settings.model_name, **settings.runner})
    used = settings.runner.get("use_cached_activations") or None
    if used and not settings.runner.get("cached_activations_path"):
        raise PluginError("--use_cached_activations needs --cached_activations_path FOLDER")
    for name, files in _FOLDERS.items():
        folder = settings.runner.get(name)
        if folder is None or (name, used) == ("cached_activations_path", None):
            continue
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
