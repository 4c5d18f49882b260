"""The log at Weights & Biases, written offline and read back from its file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from safetensors.torch import load_file
from wandb.proto import wandb_internal_pb2

from sae_plugins.entrypoints.main import main

SHORT = (
    *("--training_tokens", "2000", "--train_batch_size_tokens", "64", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "256"),
)
WORLD = (
    *("--context_size", "16", "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16"),
)
SYNTHETIC = ("--model_name", "synthetic:toy", "--eval_samples", "2000")
_LOG = ("--log_to_wandb", "--wandb_log_frequency", "2")
LOG = {
    WORLD: (*_LOG, "--eval_every_n_wandb_logs", "3", "--n_eval_batches", "1"),
    SYNTHETIC: (*_LOG, "--eval_frequency", "6"),
}
FIGURES = {"firing_by_position.png", "loss_and_l0.png", "coefficients.png", "reorder.png"}


@pytest.fixture(autouse=True)
def offline(tiny_world: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb.teardown()  # so that it reads the environment again
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def train(output: str, *arguments: str) -> Path:
    assert main(["train", *SHORT, "--output_path", output, *arguments]) == 0
    return Path(output)


def records(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, which is a LevelDB log behind 7 bytes of its own."""
    at, record = 7, b""
    while at < len(log):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, at)
        record += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def logged() -> tuple[set[str], dict[str, set[str]]]:
    """Names of the logged values, and files by artifact, of the one log in this folder."""
    (path,) = Path("wandb").glob("offline-run-*/*.wandb")
    names: set[str] = set()
    artifacts: dict[str, set[str]] = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            names |= {item.key or item.nested_key[0] for item in record.history.item}
        artifact = record.request.log_artifact.artifact
        if not artifact.name:
            artifact = record.artifact
        if artifact.name:
            artifacts[artifact.name] = {entry.path for entry in artifact.manifest.contents}
    return names, artifacts


@pytest.mark.parametrize(
    "on",
    [
        pytest.param(WORLD, id="language model", marks=pytest.mark.ci),
        pytest.param(SYNTHETIC, id="synthetic"),
    ],
)
def test_metrics_figures_and_the_sae_are_logged_and_change_no_weight(
    on: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    if on == SYNTHETIC:
        request.getfixturevalue("small_pictures")
    chosen = (*on, "--plugin", "reorder", "--plugin", "linear-l1", "--reorder.start", "5")
    off = train("off", *chosen, "--recorder.figures", "false")
    assert not (off / "figures").exists()
    assert not Path("wandb").exists()
    logging = train("on", *chosen, *LOG[on])
    assert {file.name for file in (logging / "figures").rglob("*.png")} == FIGURES
    weights = [load_file(run / "sae_weights.safetensors") for run in (off, logging)]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())

    names, artifacts = logged()
    assert {"losses/overall_loss", "metrics/coefficients/l1/linear-l1"} <= names
    assert {"figures/loss_and_l0", "figures/firing_by_position"} <= names
    (sae,) = (name for name in artifacts if not name.endswith(("_figures", "_sparsity")))
    assert {"sae_weights.safetensors", "cfg.json"} <= artifacts[sae]
    assert artifacts[f"{sae}_figures"] == FIGURES


@pytest.mark.usefixtures("small_pictures")
def test_without_a_login_the_log_is_kept_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where wandb and netrc keep keys
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    train("run", *WORLD, *LOG[WORLD])
    assert "nobody is logged in" in caplog.text
    assert "wandb sync" in caplog.text
    assert "losses/overall_loss" in logged()[0]


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize(
    ("on", "what"),
    [
        (WORLD, "Artifact.add_file"),
        pytest.param(SYNTHETIC, "Artifact.add_file", marks=pytest.mark.ci),
        (SYNTHETIC, "Image.__init__"),
    ],
)
def test_what_cannot_be_logged_costs_no_training(
    on: tuple[str, ...],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise wandb.errors.CommError("the server is away")

    monkeypatch.setattr(f"wandb.{what}", fails)
    run = train("run", *on, *LOG[on])
    assert "not logged to Weights & Biases: the server is away" in caplog.text
    assert json.loads((run / "summary.json").read_text())["training/steps"] == 32
