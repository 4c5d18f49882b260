"""The demo and the paper's table rows, on the real embedded world."""

import json
import shlex
from pathlib import Path

import pytest
from sae_lens import SAE

from sae_plugins.entrypoints.main import main
from sae_plugins.methods.hybrid_order import HybridOrder

SHORT = "--training_tokens 16384 --heldout_tokens 4096 --n_batches_in_buffer 64"


def train(folder: Path, flags: str) -> dict[str, float]:
    command = ["train", "--recipe", "hybrid-order-demo", "--output_path", str(folder)]
    assert main([*command, *shlex.split(flags)]) == 0
    summary: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return summary


def test_a_short_demo_trains_on_the_embedded_world(tmp_path: Path):
    summary = train(tmp_path / "run", f"{SHORT} --reorder.start 8 --reorder.interval 8")
    assert summary["reorder/reorderings"] >= 3
    assert summary["reorder/largest_loss_change"] < 1e-4
    assert summary["heldout/tokens"] >= 4096
    sae = SAE.load_from_disk(str(tmp_path / "run"))
    assert sae.cfg.metadata.model_name == "sae-plugins-world"
    assert sae.cfg.metadata.sae_plugins["methods"] == ["hybrid-order"]


@pytest.mark.slow
def test_the_demo_learns(tmp_path: Path):
    summary = train(tmp_path / "run", "")
    assert summary["heldout/explained_variance"] > 0.65
    assert 3 < summary["heldout/l0"] < 40
    assert summary["reorder/order_stable_from_step"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("row", HybridOrder.rows, ids=lambda row: row.label)
def test_every_row_of_the_papers_tables_trains(row: object, tmp_path: Path):
    summary = train(tmp_path / "run", f"{SHORT} {row.flags}")
    assert summary["training/steps"] == 32
