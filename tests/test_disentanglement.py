"""`adaptive-threshold` and `masked-orthogonality`: their rows, on the real embedded world."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from sae_lens import SAE

from sae_plugins.entrypoints.main import main
from sae_plugins.methods.adaptive_threshold import AdaptiveThreshold
from sae_plugins.methods.masked_orthogonality import MaskedOrthogonality
from sae_plugins.plugin import Method, Row
from sae_plugins.recorder import read_rows

SHORT = (
    "--training_tokens 3072 --train_batch_size_tokens 256 --n_batches_for_norm_estimate 4 "
    "--store_batch_size_prompts 8 --heldout_tokens 1024 --n_batches_in_buffer 16"
)
"""12 steps."""
STARTS = {
    "activation-threshold": "--activation-threshold.start 6",
    "decoder-orthogonality": "--decoder-orthogonality.start 6",
    "reconstruction-warm-up": "--reconstruction-warm-up.steps 5",
}
QUICK = {"Final model (Run 9)", "The baseline with that threshold on the finished SAE"}
ROWS = [(method, row) for method in (AdaptiveThreshold, MaskedOrthogonality) for row in method.rows]


def short(method: type[Method], row: Row, folder: Path) -> tuple[dict[str, Any], SAE[Any]]:
    """The last metrics of a short run of a row, and the SAE that it saved."""
    starts = [
        flag
        for name, flag in STARTS.items()
        if method is AdaptiveThreshold and f"--without {name}" not in row.flags
    ]
    flags = shlex.split(f"{SHORT} {' '.join(starts)} {row.flags}")
    recipe = ["--recipe", f"{method.name}-demo", "--output_path", str(folder)]
    assert main(["train", *recipe, *flags]) == 0
    return read_rows(folder / "metrics.jsonl")[-1], SAE.load_from_disk(str(folder))


@pytest.mark.parametrize(
    ("method", "row"),
    [
        pytest.param(m, r, id=r.label, marks=[] if r.label in QUICK else pytest.mark.slow)
        for m, r in ROWS
    ],
)
def test_every_row_of_the_tables_runs_and_does_what_it_says(
    method: type[Method], row: Row, tmp_path: Path
) -> None:
    last, sae = short(method, row, tmp_path / "run")
    gated = "activation-threshold" in method.mechanisms and (
        "--without activation-threshold" not in row.flags
    )
    post_hoc = "--plugin post-hoc-threshold" in row.flags
    assert sae.cfg.architecture() == ("jumprelu" if gated or post_hoc else "standard")
    assert ("activation-threshold/shut" in last) == gated
    penalised = "--without decoder-orthogonality" not in row.flags
    assert ("losses/decoder-orthogonality/overlap" in last) == penalised
    if gated:
        base_is_zero = "--activation-threshold.base 0.0" in row.flags
        assert (last["activation-threshold/shut"] > 0) != base_is_zero


@pytest.mark.slow
@pytest.mark.parametrize("method", [AdaptiveThreshold, MaskedOrthogonality])
def test_the_demos_learn(method: type[Method], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = ["--recipe", f"{method.name}-demo", "--output_path", str(folder)]
    assert main(["train", *recipe]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heldout/explained_variance"] > 0.6
    assert 3 < summary["heldout/l0"] < 40
