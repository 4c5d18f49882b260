"""An inference SAE that is saved with what the plugins, and a calibration, change of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file, save_file

from sae_plugins.framework.resolve import UNCALIBRATED
from sae_plugins.framework.thresholds import calibrate

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE
    from torch import Tensor

    from sae_plugins.framework.host import Host
    from sae_plugins.framework.run import Run


def exported(
    host: Host, run: Run, sae: TrainingSAE[Any], folder: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and config as SAELens saves them into a folder, with the plugins' edits."""
    type(sae).save_inference_model(sae, folder)
    weights = load_file(folder / SAE_WEIGHTS_FILENAME)
    config = json.loads((folder / SAE_CFG_FILENAME).read_text())
    host.notify("export_inference", run=run, weights=weights, config=config)
    return weights, config


def export(
    host: Host, run: Run, keep: bool, sae: TrainingSAE[Any], path: str | Path
) -> tuple[Path, Path]:
    """SAELens' `save_inference_model`, with the plugins' edits and thresholds that were calibrated.

    Both files are there afterwards, or neither. If `keep`, the SAE as it is without a calibration
    lies beside them, in `uncalibrated/`.
    """
    folder, calibration = Path(path), run.calibration
    staging = folder / "export.partial"  # always the same, so that none is left over for long
    staged = staging / SAE_WEIGHTS_FILENAME, staging / SAE_CFG_FILENAME
    try:
        weights, config = exported(host, run, sae, staging)
        if calibration is not None:
            if keep:
                _save(weights, config, staged, folder / UNCALIBRATED)
            calibrate(weights, config, calibration)
        return _save(weights, config, staged, folder)
    finally:
        for file in staged:
            file.unlink(missing_ok=True)
        staging.rmdir()


def _save(
    weights: dict[str, Tensor], config: dict[str, Any], staged: tuple[Path, Path], folder: Path
) -> tuple[Path, Path]:
    """Write an SAE where it is staged, then move it into its folder."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, staged[0])
    staged[1].write_text(json.dumps(config))
    folder.mkdir(exist_ok=True)
    places = folder / SAE_WEIGHTS_FILENAME, folder / SAE_CFG_FILENAME
    for file, place in zip(staged, places, strict=True):
        os.replace(file, place)
    return places
