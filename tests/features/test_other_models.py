"""Pages of SAEs of other architectures, on a model that is in a folder, however it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import D_IN, save
from sae_lens import (
    SAE,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata

from sae_plugins.base.errors import SuiteError
from sae_plugins.features.build import Request, build
from sae_plugins.features.collect import fire
from sae_plugins.features.result import FeaturePages

MADE = {
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {"normalize_activations": "layer_norm"}),
}


def made(name: str, **metadata: Any) -> SAE[Any]:
    """A random SAE, whose thresholds differ."""
    kind, config, fields = MADE[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sae: Any = kind(config(d_in=D_IN, d_sae=70, metadata=SAEMetadata(**metadata), **fields))
        with torch.no_grad():
            sae.W_enc.copy_(torch.randn(D_IN, 70))
            if name == "gated":
                sae.W_enc.sub_(0.3)  # so that fewer than half fire
            if name == "jumprelu":
                sae.threshold.copy_(torch.rand(70) * 10)
    return sae


@pytest.mark.parametrize("name", MADE)
def test_an_sae_fires_as_it_encodes(name: str) -> None:
    sae, acts = made(name), torch.randn(50, D_IN) * 7 + 1
    row, feature, value = fire(sae, acts)
    with torch.no_grad():
        expected = sae.encode(acts)
    found = torch.zeros_like(expected)
    found[row, feature] = value
    assert torch.allclose(found, expected, atol=1e-5)
    assert ((found != 0) == (expected != 0)).all()
    assert 0 < len(value) < expected.numel() / 2


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("topk", "blocks.1.hook_resid_post"),
        ("jumprelu", "blocks.1.attn.hook_z"),
        ("gated", "model.layers.1"),  # as transformers calls it
    ],
)
def test_pages_are_the_same_however_the_model_is_loaded(
    name: str, hook: str, tmp_path: Path
) -> None:
    model = save(tmp_path / "model")
    text = tmp_path / "texts.jsonl"
    text.write_text("".join(f'{{"text": "The quick brown fox number {i}."}}\n' for i in range(40)))
    where = {"model_name": str(model), "hook_name": hook, "prepend_bos": True}
    sae = made(name, **where, context_size=32, dataset_path=str(text))
    sae.save_model(tmp_path / "sae")
    pages: list[FeaturePages] = []
    for kind in ("HookedTransformer", "TransformerBridge"):
        out = tmp_path / kind
        pages.append(build(Request([str(tmp_path / "sae")], out, 900, model_class=kind)))
    first, second = (each.index["saes"][0] for each in pages)
    assert sum(first["count"]) > 100
    assert first["count"] == pytest.approx(second["count"], abs=2)
    assert first["readout"] == second["readout"]
    assert first["readout"] is not None
    assert first["readout"].endswith("W_U")
    alive = next(i for i, count in enumerate(first["count"]) if count)
    texts = [each.feature(alive).data["up"] for each in pages]
    assert [v for _, v in texts[0]] == pytest.approx([v for _, v in texts[1]], abs=0.02)


@pytest.mark.ci
def test_an_sae_of_dictionary_learning_has_pages(tmp_path: Path) -> None:
    model, sae = save(tmp_path / "model", tie_word_embeddings=True), tmp_path / "sae"
    text = tmp_path / "texts.jsonl"
    text.write_text("".join(f'{{"text": "The quick brown fox number {i}."}}\n' for i in range(40)))
    rows = torch.nn.functional.normalize(torch.randn(70, D_IN), dim=1)
    weights = {
        "encoder.weight": rows * 3, "encoder.bias": torch.zeros(70), "decoder.weight": rows.T,
        "b_dec": torch.zeros(D_IN), "k": torch.tensor(5), "threshold": torch.tensor(-1.0),
    }  # fmt: skip
    sae.mkdir()
    torch.save({name: value.contiguous() for name, value in weights.items()}, sae / "ae.pt")
    trainer = {
        "dict_class": "AutoEncoderTopK", "trainer_class": "TopKTrainer", "activation_dim": D_IN,
        "dict_size": 70, "k": 5, "lm_name": str(model), "layer": 1,
        "submodule_name": "resid_post_layer_1",
    }  # fmt: skip
    (sae / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 32}}))
    with pytest.raises(SuiteError, match=r"does not say which text .* --dataset_path"):
        build(Request([str(sae)], tmp_path / "out", 900))
    pages = build(Request([str(sae)], tmp_path / "out", 900, {"dataset_path": str(text)}))
    about = pages.index["saes"][0]
    assert sum(about["count"]) > pages.index["counted"]
    assert about["readout"] == "W_dec · W_U"
