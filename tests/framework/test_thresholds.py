"""Thresholds that are set for an L0, on every architecture that can have some."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_plugins import Checkpoints, PluginError, plugins
from sae_plugins.framework.architectures import ARCHITECTURES
from sae_plugins.framework.calibration import TOLERANCE, Calibration
from sae_plugins.framework.resolve import UNCALIBRATED, TrainingSettings
from sae_plugins.framework.thresholds import as_jumprelu, calibrate, calibrated, threshold_for_l0
from sae_plugins.testing import D_IN, D_SAE, tiny_batches, tiny_sae

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
    config: dict[str, Any] | None = None,
    names: tuple[str, ...] = (),
    **settings: Any,
) -> Any:
    sae = tiny_sae(architecture, normalize_activations="expected_average_only_in", **config or {})
    logger = LoggingConfig(log_to_wandb=False)
    about = SAETrainerConfig(
        total_training_samples=STEPS * 32, train_batch_size_samples=32, lr_end=1e-3, lr=1e-2,
        n_batches_for_norm_estimate=2, logger=logger,
    )  # fmt: skip
    batches = [*tiny_batches(1, steps=2), *tiny_batches(0, steps=STEPS + following)]
    with plugins(*names, training=settings, seed=0, checkpoints=checkpoints):
        return SAETrainer(about, sae, iter(wrapped(batches[skipped:]))).fit()


def l0(sae: Any, folder: Path, acts: Tensor) -> float:
    """As it is saved."""
    sae.save_inference_model(str(folder))
    return l0_of(folder, acts)


def l0_of(folder: Path, acts: Tensor) -> float:
    """Of a saved SAE, as plain SAELens loads it."""
    saved: Any = SAE.load_from_disk(str(folder))
    return float((saved.encode(acts.to(saved.dtype)) > 0).sum() / len(acts))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_batchtopk_sae_is_saved_with_its_k(architecture: str, tmp_path: Path) -> None:
    calibrated, lagging = train(architecture, following=600, **ON), train(architecture)
    following = tiny_batches(0, steps=STEPS + 600)[STEPS:]
    seen = torch.cat(following[: -(-TrainingSettings().calibrate_tokens // 32)])
    assert l0(calibrated, tmp_path / "on", seen) == 4
    assert l0(calibrated, tmp_path / "on", torch.cat(following[200:])) == pytest.approx(4, rel=0.05)
    assert l0(lagging, tmp_path / "off", seen) > 6
    theirs = lagging.state_dict()
    for name, tensor in calibrated.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name  # only what is saved has another threshold


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
    saved = []
    for name, sae in (("whole", whole), ("again", again)):
        sae.save_inference_model(str(tmp_path / name))
        saved.append((tmp_path / name / "sae_weights.safetensors").read_bytes())
    assert saved[0] == saved[1]


def test_what_has_no_threshold_that_lags_is_refused() -> None:
    with pytest.raises(PluginError, match="topk SAEs have no threshold that lags: leave it out"):
        train("topk", **ON)


CAN = [name for name, row in expected.ARCHITECTURES.items() if row.calibrated]
CANNOT = [name for name, row in expected.ARCHITECTURES.items() if not row.calibrated]


def test_the_table_says_what_can_be_calibrated() -> None:
    assert {name: row.calibrated for name, row in ARCHITECTURES.items()} == {
        name: row.calibrated for name, row in expected.ARCHITECTURES.items()
    }


@pytest.mark.parametrize("name", CANNOT)
def test_an_sae_whose_rule_no_threshold_can_replace_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match=f"{name} SAEs cannot be calibrated, since no"):
        train(name, calibrate_l0=4)


# -- any architecture, any L0 ----------------------------------------------------------------------


def of_one_length(tokens: int, seed: int) -> Tensor:
    """Tokens of which fewer tell the L0: that of longer ones would be larger."""
    drawn = torch.randn(tokens, D_IN, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


SET, UNSEEN = of_one_length(200_000, 1), of_one_length(400_000, 2)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        pytest.param(name, wanted, marks=[] if name in ("standard", "topk") else pytest.mark.ci)
        for name, wanted in zip(CAN, itertools.cycle([2, 3.5]), strict=False)
    ],
)
def test_l0_is_exactly_what_is_wanted_also_on_text_that_set_nothing(
    name: str, wanted: float, tmp_path: Path
) -> None:
    sae = train(name, wrapped=lambda batches: [*batches, SET], calibrate_l0=wanted,
                calibrate_tokens=32)  # fmt: skip
    assert l0(sae, tmp_path, SET) == pytest.approx(wanted, abs=1e-4)
    assert l0_of(tmp_path, UNSEEN) == pytest.approx(wanted, rel=TOLERANCE)
    before = l0_of(tmp_path / UNCALIBRATED, UNSEEN)
    assert before != pytest.approx(wanted, rel=0.1), "so that there was something to do"
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"
    known = Calibration(**config["metadata"]["calibration"])
    assert (known.l0, known.tokens, known.shortfall) == (wanted, len(SET), None)
    assert 0 < known.spread < TOLERANCE, "these are tokens enough"
    assert config["metadata"]["l0"] == known.reached


def closed(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An inference SAE whose own thresholds leave few features active."""
    tiny_sae(name).save_inference_model(str(folder))
    weights = load_file(folder / "sae_weights.safetensors")
    if name == "gated":
        weights["b_gate"] -= 0.03
        weights["b_mag"] += 0.01
        weights["r_mag"] += 0.3
    else:
        weights["threshold"] = torch.linspace(0.001, 0.05, D_SAE)
    return weights, json.loads((folder / "cfg.json").read_text())


@pytest.mark.parametrize("name", ["jumprelu", "gated", "batchtopk"])
def test_thresholds_are_lowered_where_more_features_are_wanted(name: str, tmp_path: Path) -> None:
    weights, config = closed(name, tmp_path)
    acts = of_one_length(2000, 3)
    as_jumprelu(weights, config)
    own = weights["threshold"].clone()
    l0 = float(((acts - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"] > own).sum())
    l0 /= len(acts)
    for wanted in (l0 + 2, l0 / 2):
        found, changed = calibrated(weights, config, [acts], wanted), dict(weights)
        assert found.lowers == (wanted > l0)
        assert found.reached == pytest.approx(wanted, abs=1e-3)
        calibrate(changed, dict(config), found)
        kept = changed["threshold"]
        assert (kept <= own if found.lowers else kept >= own).all(), "all move in one direction"
        assert (kept != own).any()


def test_a_gated_sae_is_the_same_as_a_jumprelu_sae(tmp_path: Path) -> None:
    weights, config = closed("gated", tmp_path / "gated")
    acts = of_one_length(1000, 3)
    for place, change in (("gated", lambda *_: None), ("jumprelu", as_jumprelu)):
        change(weights, config)
        (tmp_path / place).mkdir(exist_ok=True)
        save_file(weights, tmp_path / place / "sae_weights.safetensors")
        (tmp_path / place / "cfg.json").write_text(json.dumps(config))
    one, other = (SAE.load_from_disk(str(tmp_path / n)).encode(acts) for n in ("gated", "jumprelu"))
    assert (one > 0).any()
    assert torch.allclose(one, other, atol=1e-6)


def test_the_smallest_contributions_go_first_whatever_their_units(tmp_path: Path) -> None:
    """A feature of large activations and a small decoder row is no more than one the other way."""
    sae = tiny_sae("standard")
    scale = torch.linspace(0.1, 10, sae.cfg.d_sae)
    acts = of_one_length(2000, 3)
    found = []
    for factor in (torch.ones_like(scale), scale):
        with torch.no_grad():
            for parameter in (sae.W_enc, sae.b_enc):
                parameter *= factor
            sae.W_dec /= factor[:, None]
        sae.save_inference_model(str(tmp_path))
        weights = load_file(tmp_path / "sae_weights.safetensors")
        config = json.loads((tmp_path / "cfg.json").read_text())
        calibrate(weights, config, calibrated(weights, config, [acts], 3))
        found.append((acts - weights["b_dec"]) @ weights["W_enc"] > weights["threshold"])
    assert (found[0] != found[1]).float().mean() < 1e-4


def test_an_l0_out_of_reach_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, config = closed("jumprelu", tmp_path)
    acts = of_one_length(1000, 3)
    found = calibrated(weights, config, [acts], 23)
    assert found.reached == found.most < 23
    assert "an L0 of 23 is wanted, and without any threshold it is" in caplog.text
    assert "train with less sparsity" in caplog.text
    caplog.clear()
    tied = calibrated(weights, config, [acts[:1].repeat(50, 1)], 2.5)
    assert tied.reached == 2
    assert "an L0 of 2.5 is wanted, and 2 is the nearest: many activations are equal" in caplog.text


def test_text_whose_tokens_are_alike_tells_less(tmp_path: Path) -> None:
    """As those of one document are; each is here as often as its batch is long."""
    weights, config = closed("jumprelu", tmp_path)
    drawn = of_one_length(40, 3)
    clustered = [token.repeat(100, 1) for token in drawn]
    found = calibrated(weights, config, clustered, 6).spread
    once = calibrated(weights, config, [drawn], 6).spread
    assert found == pytest.approx(once, rel=0.1), "as 40 tokens do"


def test_how_many_tokens_would_be_enough() -> None:
    few = Calibration(8, 8, 20, 0.02, 1000, 0.1, lowers=False)
    assert few.enough_tokens == 16_000
