"""What the runs of a study left behind, as the report shows it: curves, feature order, redundancy.

Read with numpy alone. What a run lacks is None, or is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sae_plugins.runs.figures import CHANGES
from sae_plugins.runs.folder import SPARSITY, WEIGHTS

DECODER = "decoder.safetensors"
"""The decoder rows of an SAE that lies elsewhere."""
_STEPS = 120
"""At most so many points of a curve are kept."""
_BLOCK = 1024

Trace = Sequence[Mapping[str, Any]]


def curve(runs: Iterable[Trace], column: str) -> tuple[list[float], list[float]]:
    """A metric over the tokens seen: the mean over runs, where all of them have it, thinned out."""
    each = [
        {row["samples"]: row[column] for row in rows if row.get(column) is not None}
        for rows in runs
    ]
    each = [values for values in each if values]
    if not each:
        return [], []
    common = sorted(set(each[0]).intersection(*each[1:]))
    kept = np.unique(np.linspace(0, len(common) - 1, min(_STEPS, len(common))).astype(int))
    tokens = [common[place] for place in kept]
    return tokens, [fmean(values[token] for values in each) for token in tokens]


def permuted_features(rows: Trace) -> bool:
    """Whether the run moved features to other positions."""
    return any(f"{CHANGES}permuted" in row for row in rows)


def log_frequencies(run: Path) -> NDArray[np.float32] | None:
    """[d_sae], log10 of each feature's firing frequency at the end of training, by position."""
    return _tensor(run / SPARSITY, "sparsity")


def nearest_cosines(run: Path, at_most: int) -> NDArray[np.float32] | None:
    """Each feature's largest |cosine| with another decoder row: 1 means that it has a duplicate.

    Args:
        run: the run's folder.
        at_most: so many features, evenly spread over the positions, stand for all of them.
    """
    rows = decoder_rows(run)
    if rows is None:
        return None
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = (rows / np.where(norms > 0, norms, 1))[norms[:, 0] > 0]
    if len(rows) < 2:
        return None
    chosen = np.arange(0, len(rows), math.ceil(len(rows) / at_most))
    found: list[NDArray[np.float32]] = []
    for block in np.array_split(chosen, math.ceil(len(chosen) / _BLOCK)):
        cosines = np.abs(rows[block] @ rows.T)
        cosines[np.arange(len(block)), block] = 0  # with itself
        found.append(cosines.max(axis=1))
    nearest: NDArray[np.float32] = np.concatenate(found)
    return nearest


def decoder_rows(run: Path) -> NDArray[np.float32] | None:
    """[d_sae, d_in], what each feature adds to the reconstruction."""
    file = decoder_file(run)
    return None if file is None else _tensor(file, "W_dec")


def decoder_file(run: Path) -> Path | None:
    """Where a run's folder has them, if it does."""
    return next((run / name for name in (WEIGHTS, DECODER) if (run / name).is_file()), None)


def _tensor(file: Path, name: str) -> NDArray[np.float32] | None:
    """None where there is no such tensor, or numpy lacks its type, such as bfloat16."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            return np.asarray(tensors.get_tensor(name), dtype=np.float32)
    except (OSError, SafetensorError, TypeError):
        return None
