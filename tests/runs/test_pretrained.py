"""Training begins with the weights of another SAE: everything else is as the flags say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from sae_plugins.entrypoints.main import main
from sae_plugins.settings.flags import architectures

RUN = [
    *("--training_tokens", "128", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16", "--d_sae", "32"),
    *("--heldout_tokens", "0", "--normalize_activations", "none"),
]
OF = {"matching_pursuit": ["--max_iterations", "2"]} | {
    name: ["--k", "4"] for name in architectures() if "topk" in name
}


@pytest.fixture(autouse=True)
def _tiny(tiny_world: Any, sketched: None) -> None:
    """A tiny model for the embedded world."""


def train(output: str, *arguments: str, code: int = 0) -> Path:
    assert main(["train", *RUN, "--output_path", output, *arguments]) == code
    return Path(output)


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "sae_weights.safetensors")


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cfg.json").read_text())


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=[] if name == "batchtopk" else pytest.mark.ci)
        for name in architectures()
    ],
)
def test_the_weights_are_loaded_and_the_flags_count(architecture: str) -> None:
    flags = ["--architecture", architecture, *OF.get(architecture, [])]
    first = train("first", *flags)
    again = train("again", *flags, "--from_pretrained_path", "first", "--lr", "1e-12")
    before, after = weights(first), weights(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # the threshold of batchtopk SAEs follows the batches, whatever the learning rate is
        if not (name == "threshold" and architecture.endswith("batchtopk")):
            assert tensor.allclose(after[name], atol=1e-5), name
    assert yaml.safe_load((again / "run.yaml").read_text())["from_pretrained_path"] == str(
        Path("first").absolute()
    )


def test_another_k_and_coefficient_count() -> None:
    train("topk", "--architecture", "topk", "--k", "4")
    topk = ("--architecture", "topk", "--from_pretrained_path", "topk")
    assert config(train("more", *topk, "--k", "8"))["k"] == 8
    train("first")
    begin = ("--from_pretrained_path", "first", "--lr", "0.01")
    few, many = (train(f"l1-{c}", *begin, "--l1_coefficient", c) for c in ("0", "100"))
    assert not weights(few)["W_enc"].equal(weights(many)["W_enc"])


DIFFERENT = (
    ("--architecture topk --k 8", "its --architecture is standard and not topk"),
    ("--architecture jumprelu", "its --architecture is standard and not jumprelu"),
    ("--d_sae 16", "its --d_sae is 32 and not 16"),
    ("--hook_name blocks.0.hook_resid_post", "its --hook_name is blocks.1.hook_resid_post and"),
    (
        "--normalize_activations layer_norm --d_sae 64",
        "--d_sae is 32 and not 64, its --normalize_activations is none and not layer_norm",
    ),
    ("--apply_b_dec_to_input false", "its --apply_b_dec_to_input is true and not false"),
    ("--decoder_init_norm 1", "--decoder_init_norm: the weights to begin with are loaded"),
)


def test_differences_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    train("first")
    for arguments, message in DIFFERENT:
        train("again", "--from_pretrained_path", "first", *arguments.split(), code=2)
        assert message in capsys.readouterr().err
    assert not Path("again").exists()


def test_tied_weights_begin_with_an_encoder_that_is_the_decoder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train("free")
    tied = ("--plugin", "tied-weights")
    train("again", "--from_pretrained_path", "free", *tied, code=1)
    said = capsys.readouterr().err
    assert "has an encoder that is not its decoder's transpose, and that would be lost" in said
    assert "leave the plugin out, or begin with an SAE that was trained with tied weights" in said
    first = train("tied", *tied)
    before = weights(first)
    after = weights(train("on", "--from_pretrained_path", "tied", *tied, "--lr", "1e-12"))
    assert all(tensor.allclose(after[name], atol=1e-5) for name, tensor in before.items())


def test_a_damaged_sae_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    first = train("first")
    begin = ("again", "--from_pretrained_path", "first")
    tensors = weights(first)
    save_file({**tensors, "odd": tensors["b_enc"].clone()}, first / "sae_weights.safetensors")
    train(*begin, code=2)
    assert "its odd cannot be loaded into a standard SAE" in capsys.readouterr().err
    (first / "sae_weights.safetensors").write_bytes(b"x")
    train(*begin, code=2)
    assert "first holds no SAE that SAELens can load" in capsys.readouterr().err
