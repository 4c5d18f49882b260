"""The synthetic presets, and runs on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import SAE
from safetensors.torch import load_file

from sae_plugins.base.errors import PluginError
from sae_plugins.entrypoints.main import main
from sae_plugins.runs.setup import SAELensSettings, sae_config
from sae_plugins.settings.defaults import model_defaults
from sae_plugins.world.synthetic_models import SYNTHETIC_MODELS

RUN = (
    "--training_tokens 2000 --train_batch_size_tokens 100 --heldout_tokens 2000 --eval_samples 500"
)


def train(output: str, *arguments: str) -> Path:
    line = ["train", "--model_name", "synthetic:small", *RUN.split(), "--output_path", output]
    assert main([*line, *arguments]) == 0
    return Path(output)


def same(left: Path, right: Path) -> bool:
    first, second = (load_file(run / "sae_weights.safetensors") for run in (left, right))
    return all(tensor.equal(second[name]) for name, tensor in first.items())


@pytest.fixture(autouse=True)
def folder(sketched: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.parametrize("name", list(SYNTHETIC_MODELS))
def test_presets_are_the_same_world_every_time(name: str):
    settings = model_defaults(f"synthetic:{name}")
    torch.manual_seed(1)
    first = SYNTHETIC_MODELS[name]("cpu")
    torch.manual_seed(2)
    second = SYNTHETIC_MODELS[name]("cpu")
    assert first.feature_dict.feature_vectors.equal(second.feature_dict.feature_vectors)
    assert settings["d_sae"] >= first.cfg.num_features
    assert SYNTHETIC_MODELS[name].__doc__


def test_toy_is_the_toy_of_the_studies():
    model = SYNTHETIC_MODELS["toy"]("cpu")
    torch.manual_seed(0)
    _, features = model.sample_with_features(4000)
    fires = features > 0
    parents, children = fires[:, :16], fires[:, 16:64].view(-1, 16, 3)
    assert model.cfg.hidden_dim == 48
    assert features.shape[1] == 96
    assert children.sum(-1).max() == 1  # siblings exclude one another
    assert not (children.any(-1) & ~parents).any()  # and need their parent
    assert children.any(-1).any(0).all()
    one, other = fires[:, 64:80:2], fires[:, 65:80:2]
    assert 0.5 < (one & other).sum() / one.sum() < 0.7  # 8 pairs among those that stand alone
    assert (fires[:, 80] & fires[:, 81]).sum() < 0.2 * fires[:, 80].sum()


def test_a_run_knows_the_truth_and_is_reproducible():
    run = train("run", "--plugin", "reorder", "--reorder.start", "5", "--reorder.interval", "5")
    summary = json.loads((run / "summary.json").read_text())
    assert 0 < summary["truth/mcc"] <= 1
    assert summary["heldout/tokens"] >= 2000
    assert SAE.load_from_disk(str(run)).cfg.metadata.model_name == "synthetic:small"
    config = json.loads((run / "runner_config.json").read_text())
    assert config["output_path"] == "run"  # and not the folders of this machine
    assert main(["train", "--recipe", "run/run.yaml", "--output_path", "again"]) == 0
    assert same(run, Path("again"))
    assert not same(run, train("other", "--plugin", "reorder", "--seed", "1"))


@pytest.mark.ci  # by default: test_weights_and_biases.py
@pytest.mark.usefixtures("small_pictures")
def test_logging_to_wandb_changes_no_weight():
    off = train("off")
    often = "--wandb_log_frequency 2 --eval_frequency 4"
    assert same(off, train("on", "--log_to_wandb", *often.split()))


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "batchtopk"])
def test_sparse_activations_are_refused_where_training_has_them(architecture: str) -> None:
    settings = SAELensSettings(
        "synthetic:toy", architecture, sae={"k": 4, "use_sparse_activations": True}
    )
    if architecture == "topk":
        with pytest.raises(PluginError, match="--use_sparse_activations: PyTorch cannot train"):
            sae_config(settings, 48)
    else:
        assert sae_config(settings, 48).use_sparse_activations


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_short_run_has_the_l0_that_was_asked_for(architecture: str) -> None:
    chosen = ("--architecture", architecture, "--k", "5", "--training_tokens", "1000")
    run, lagging = train("run", *chosen), train("off", *chosen, "--calibrate_threshold", "false")
    on, off = (json.loads((folder / "summary.json").read_text()) for folder in (run, lagging))
    names = list(on)
    assert names[names.index("heldout/l0") + 1] == "heldout/k"
    assert on["heldout/k"] == 5
    assert on["heldout/l0"] == pytest.approx(5, rel=0.1)
    assert off["heldout/l0"] > 10, "SAELens' own"
    config = json.loads((run / "cfg.json").read_text())
    assert config["metadata"]["sae_plugins"]["training"]["calibrate_threshold"] is True
    assert yaml.safe_load((run / "run.yaml").read_text())["calibrate_threshold"] is True
    assert main(["train", "--recipe", "off/run.yaml", "--output_path", "again"]) == 0
    assert same(lagging, Path("again"))


def test_what_has_no_threshold_that_lags_is_not_calibrated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train("run")
    assert "calibrate_threshold" not in yaml.safe_load((run / "run.yaml").read_text())
    line = ["train", "--model_name", "synthetic:small", "--calibrate_threshold"]
    assert main([*line, "--output_path", "no"]) == 2
    said = capsys.readouterr().err
    assert "--calibrate_threshold: standard SAEs do not have it; batchtopk and" in said


@pytest.mark.parametrize(
    ("architecture", "k", "expected"),
    [("topk", 8.0, 8), ("abstopk", 8.0, 8), ("batchtopk", 8.0, 8.0), ("batchtopk", 8.5, 8.5)],
)
def test_k_is_whole_where_saelens_has_it_whole(
    architecture: str, k: float, expected: float
) -> None:
    config = sae_config(SAELensSettings("synthetic:toy", architecture, sae={"k": k}), 48)
    assert repr(config.k) == repr(expected)
