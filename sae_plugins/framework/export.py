"""An inference SAE that is saved with what the plugins change of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE

    from sae_plugins.framework.host import Host
    from sae_plugins.framework.run import Run


def export(host: Host, run: Run, sae: TrainingSAE[Any], path: str | Path) -> tuple[Path, Path]:
    """SAELens' `save_inference_model`, with the plugins' edits; both files or neither."""
    folder = Path(path)
    staging = folder / "export.partial"  # always the same, so that none is left over for long
    places = folder / SAE_WEIGHTS_FILENAME, folder / SAE_CFG_FILENAME
    staged = staging / SAE_WEIGHTS_FILENAME, staging / SAE_CFG_FILENAME
    try:
        type(sae).save_inference_model(sae, staging)
        weights, config = load_file(staged[0]), json.loads(staged[1].read_text())
        host.notify("export_inference", run=run, weights=weights, config=config)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, staged[0])
        staged[1].write_text(json.dumps(config))
        for file, place in zip(staged, places, strict=True):
            os.replace(file, place)
    finally:
        for file in staged:
            file.unlink(missing_ok=True)
        staging.rmdir()
    return places
