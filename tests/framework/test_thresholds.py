"""Thresholds that are set for an L0, and those of BatchTopK SAEs, which lag behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_plugins import Checkpoints, PluginError, plugins
from sae_plugins.framework.thresholds import CALIBRATION_TOKENS, threshold_for_l0
from sae_plugins.testing import tiny_batches, tiny_sae

STEPS = 10
LAST = tiny_batches(0, steps=STEPS)[-1]
ON = {"calibrate_threshold": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("l0", [0, 0.05, 1, 2.5, 7, 12])
def test_exactly_as_many_are_active_as_are_wanted(l0: float, dtype: torch.dtype) -> None:
    acts = torch.randperm(60 * 32).reshape(60, 32).to(dtype) - 900
    if dtype is torch.bfloat16:  # which has few numbers
        acts = torch.linspace(-1, 1, 32, dtype=dtype).repeat(60, 1)
        l0 = round(l0)
    active = (acts > threshold_for_l0(acts, l0)).sum()
    assert active == round(60 * l0)


def test_what_no_threshold_can_do() -> None:
    acts = torch.tensor([[3.0, 2.0, 2.0, -1.0]])
    assert threshold_for_l0(acts, 3) == pytest.approx(1)
    assert threshold_for_l0(acts, 4) == 0, "what is not positive is never active"
    assert threshold_for_l0(acts, 99) == 0
    assert threshold_for_l0(acts, 2) == 2, "the two are equal"
    assert threshold_for_l0(acts, 1) == 2.5
    assert threshold_for_l0(torch.zeros(5, 3), 1) == 0
    near = torch.tensor([[1.0, 1.0]]).nextafter(torch.tensor([[1.0, 2.0]]))
    assert (near > threshold_for_l0(near, 1)).sum() == 1, "nothing lies between them"


def train(
    architecture: str,
    checkpoints: Checkpoints | None = None,
    skipped: int = 0,
    following: int = 0,
    wrapped: Any = list,
    **settings: Any,
) -> Any:
    sae = tiny_sae(architecture, normalize_activations="expected_average_only_in")
    logger = LoggingConfig(log_to_wandb=False)
    config = SAETrainerConfig(
        total_training_samples=STEPS * 32, train_batch_size_samples=32, lr_end=1e-3, lr=1e-2,
        n_batches_for_norm_estimate=2, logger=logger,
    )  # fmt: skip
    batches = [*tiny_batches(1, steps=2), *tiny_batches(0, steps=STEPS + following)]
    with plugins(training=settings, seed=0, checkpoints=checkpoints):
        return SAETrainer(config, sae, iter(wrapped(batches[skipped:]))).fit()


def l0(sae: Any, folder: Path, acts: Tensor) -> float:
    """As it is saved."""
    sae.save_inference_model(str(folder))
    saved: Any = SAE.load_from_disk(str(folder))
    return float((saved.encode(acts) > 0).sum() / len(acts))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_batchtopk_sae_is_saved_with_its_k(architecture: str, tmp_path: Path) -> None:
    calibrated, lagging = train(architecture, following=600, **ON), train(architecture)
    following = tiny_batches(0, steps=STEPS + 600)[STEPS:]
    seen = torch.cat(following[: -(-CALIBRATION_TOKENS // 32)])
    assert l0(calibrated, tmp_path / "on", seen) == 4
    assert l0(calibrated, tmp_path / "on", torch.cat(following[200:])) == pytest.approx(4, rel=0.05)
    assert l0(lagging, tmp_path / "off", seen) > 6
    theirs = lagging.state_dict()
    for name, tensor in calibrated.state_dict().items():
        assert torch.equal(tensor, theirs[name]) == (name != "topk_threshold"), name


def test_where_no_batch_follows_the_last_one_serves(tmp_path: Path) -> None:
    assert l0(train("batchtopk", **ON), tmp_path, LAST) == 4


def test_what_cannot_be_read_costs_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(list[Tensor]):
        def __iter__(self) -> Any:
            yield from list.__iter__(self)
            raise OSError("the network is down")

    sae = train("batchtopk", wrapped=Broken, **ON)
    assert l0(sae, tmp_path, LAST) == 4
    assert "the network is down" in caplog.text


def test_a_resumed_run_is_calibrated_alike(tmp_path: Path) -> None:
    whole = train("batchtopk", Checkpoints(tmp_path, every="4"), **ON)
    again = train("batchtopk", Checkpoints(tmp_path, resume=True), skipped=2 + 8, **ON)
    assert torch.equal(whole.topk_threshold, again.topk_threshold)


def test_what_has_no_threshold_that_lags_is_refused() -> None:
    with pytest.raises(PluginError, match="topk SAEs have no threshold that lags: leave it out"):
        train("topk", **ON)
