"""What a run says of itself at its end: `summary.json`, in groups of lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.files import write
from sae_plugins.framework.calibration import Calibration
from sae_plugins.framework.resolve import UNCALIBRATED
from sae_plugins.runs.folder import CONFIG, SUMMARY, TRAINING_SUMMARY

if TYPE_CHECKING:
    from sae_lens import SAE

HELDOUT = "heldout"
"""Of the saved SAE on held-out text; `UNCALIBRATED`, of the same one without its calibration."""
TUNING = "tuning"
"""Of an SAE that serves to choose a setting, on text that does not score others."""
LAST_K = "training/k"
"""Of the last step: plugins may multiply k as the training goes, and the SAE is saved with it."""
OFF_MEAN = "training/b_dec_off_mean"
OFF_MEAN_AT_START = f"{OFF_MEAN}_at_start"
"""How far b_dec is from the data's mean, over the mean's length."""
_CALIBRATION = "calibration"
MEANINGS = {
    "training/loss": "last batch, inputs as training scales them",
    "training/l0": "active features per token, last batch",
    "training/explained_variance": "last batch",
    OFF_MEAN_AT_START: "||b_dec - mean|| / ||mean||, of the first batch's mean",
    OFF_MEAN: "the same at the end, of that mean, too",
    "training/steps": "batches",
    "training/updates": "steps of the optimizer",
    "training/seconds": "of the training alone",
    "run/seconds": "the whole",
    "calibration/l0": "the L0 that is wanted",
    "calibration/reached": "the L0 that there is, on the tokens that set the thresholds",
    "calibration/most": "the L0 without any threshold: the most that can be reached",
    "calibration/spread": "by this share, L0 may differ on as many other tokens (95%)",
    "calibration/tokens": "on how many tokens the thresholds were set",
    "calibration/threshold": "what an activation times its decoder row's norm must exceed",
    "calibration/lowers": "yes: no feature's threshold is above that; no: none is below",
    "calibration": "thresholds set after training, so that L0 is what is wanted",
    HELDOUT: "the saved SAE, on text that it was not trained on",
    UNCALIBRATED: "the SAE as it was before its thresholds were set, on that text",
    "training": "the SAE in training",
}
"""What the groups and the lines of a summary are that no metric's or plugin's table has."""


def saved_saes(folder: Path, device: str) -> list[SAE[Any]]:
    """The SAE that a run has saved, and the one without its calibration, if that was kept."""
    from sae_lens import SAE

    folders = [folder, *(path.parent for path in folder.glob(f"{UNCALIBRATED}/{CONFIG}"))]
    return [SAE.load_from_disk(str(path), device=device) for path in folders]


def write_summary(
    folder: Path,
    heldout: Sequence[Mapping[str, float]],
    found: Mapping[str, float],
    seconds: float,
    profile: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a run's `summary.json`, with what the recorder's `training_summary.json` says.

    The k that the SAE was saved with, if it has one, stands beside the held-out L0.

    Args:
        folder: the run's.
        heldout: the held-out metrics of `saved_saes`.
        found: what is known about the SAE besides them, by name.
        seconds: what the run took, together with those that it shared its batches with.
        profile: where the time went.
    """
    recorded = folder / TRAINING_SUMMARY
    training: dict[str, Any] = json.loads(recorded.read_text("utf-8")) if recorded.exists() else {}
    named: dict[str, float] = {}
    k = training.pop(LAST_K, None)
    calibration = _calibration(folder)
    if k != calibration.get(f"{_CALIBRATION}/l0", k):
        k = None  # another L0 than that of the training is wanted
    for place, metrics in zip((HELDOUT, UNCALIBRATED), heldout, strict=False):
        for name, value in metrics.items():
            named[f"{place}/{name}"] = value
            if name == "l0" and k is not None:
                named[f"{place}/k"] = k
    values = {**named, **calibration, **found, **training, "run/seconds": round(seconds, 1)}
    summary = {  # JSON has no NaN
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    } | ({} if profile is None else {"profile": dict(profile)})
    write(folder / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def _calibration(folder: Path) -> dict[str, float]:
    """What the metadata of a saved SAE say of the setting of its thresholds, by name."""
    try:
        metadata = json.loads((folder / CONFIG).read_text("utf-8"))["metadata"]
        known = metadata["calibration"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {f"{_CALIBRATION}/{name}": value for name, value in known}


def lines_of(calibration: Calibration) -> dict[str, Any]:
    """What a summary says of the setting of thresholds, by name."""
    return {f"{_CALIBRATION}/{name}": value for name, value in asdict(calibration).items()}


def calibration_of(summary: Mapping[str, Any]) -> Calibration | None:
    """How the thresholds of a run's SAE were set, by its summary; None if they were not."""
    group = f"{_CALIBRATION}/"
    lines = {name.removeprefix(group): v for name, v in summary.items() if name.startswith(group)}
    return Calibration(**lines) if lines else None
