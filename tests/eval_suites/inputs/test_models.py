"""Loading language models: which one it is, in which dtype, and what cannot be loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub import errors
from transformer_lens import HookedTransformer

from sae_plugins import world
from sae_plugins.base.errors import SuiteError
from sae_plugins.base.hub import why
from sae_plugins.eval_suites.inputs.models import (
    LanguageModel,
    _hash,
    check_hook,
    expected,
    load_language_model,
)
from sae_plugins.eval_suites.saebench.facts import default_dtype
from sae_plugins.runs.language_models.transformer_lens import Listed


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_language_model(world.NAME, "cpu", "float32")


def test_the_embedded_world(model):
    assert (model.name, model.dtype, model.device) == (world.NAME, "float32", "cpu")
    tokens = torch.arange(20)[None]
    assert torch.equal(model.hooked(tokens), world.load_hooked_transformer()(tokens))


def test_the_hash_is_of_the_function(model):
    again = load_language_model(world.NAME, "cpu", "float32")
    again.hooked.cfg.device = "cuda"
    again.hooked.cfg.model_name = "another"
    assert _hash(again.hooked) == model.hash
    again.hooked.cfg.attn_scale = 7.0
    assert _hash(again.hooked) != model.hash
    again.hooked.cfg.attn_scale = model.hooked.cfg.attn_scale
    with torch.no_grad():
        again.hooked.W_U[5, 7] += 1e-6
    assert _hash(again.hooked) != model.hash
    half = load_language_model(world.NAME, "cpu", "bfloat16")
    assert half.hooked.W_U.dtype == torch.bfloat16
    assert half.hash != model.hash


def test_others_are_loaded_as_saebench_does(model, monkeypatch):
    calls: list[Any] = []

    def load(name: str, **kwargs: Any) -> Any:
        calls.append((name, kwargs))
        return model.hooked

    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", load)
    monkeypatch.setattr(Listed, "looks", lambda _: None)
    for name, dtype in (("gemma-2-2b", "bfloat16"), ("gpt2", "float32")):
        loaded = load_language_model(name, "cpu", default_dtype(name))
        assert (loaded.dtype, loaded.label) == (dtype, name)
        assert loaded.loaded_as == "HookedTransformer, as TransformerLens lists it"
    assert calls == [
        ("gemma-2-2b", {"device": "cpu", "dtype": torch.bfloat16, "trust_remote_code": False}),
        ("gpt2", {"device": "cpu", "dtype": torch.float32, "trust_remote_code": False}),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("gema-2-2b", "cpu", "float32"),
            "language model gema-2-2b cannot be loaded .*: did you mean 'gemma-2-2b'",
        ),
        (("sae-plugins-wolrd", "cpu", "float32"), "did you mean 'sae-plugins-world'"),
        (("Qwen/Qwen-7B", "cpu", "float32"), "run code on this machine"),
        ((world.NAME, "tpu9", "float32"), "device 'tpu9' cannot be used"),
        ((world.NAME, "cpu", "int8"), "dtype 'int8' is unknown; choose one of float32"),
    ],
)
def test_models_that_cannot_be_loaded(arguments, message):
    with pytest.raises(SuiteError, match=message):
        load_language_model(*arguments)


def test_a_model_while_offline(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = r"gpt2 cannot be loaded as a HookedTransformer: the Hub cannot be .*: go online"
    with pytest.raises(SuiteError, match=said):
        load_language_model("gpt2", "cpu", "float32")


def test_hooks():
    model = expected(world.NAME, "float32")
    check_hook(model, "blocks.1.hook_resid_post")
    with pytest.raises(SuiteError, match=r"has no hook 'blocks.1.hook_resid_pots'; did you mean"):
        check_hook(model, "blocks.1.hook_resid_pots")
    with pytest.raises(SuiteError, match=rf"{world.NAME} has no hook 'x'; known: .*N from 0 to 3"):
        check_hook(model, "x")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "accept its terms"),
        (errors.RepositoryNotFoundError, "no such repository"),
        (errors.LocalEntryNotFoundError, "go online"),
        (errors.OfflineModeIsEnabled, "unset HF_HUB_OFFLINE"),
        (errors.RemoteEntryNotFoundError, "lacks a file"),
    ],
)
def test_reasons_of_the_hub(kind, words):
    wrapped = OSError("some text of a library")
    wrapped.__cause__ = kind.__new__(kind)
    assert words in why(wrapped)
    assert why(ValueError("first\nsecond")) == "ValueError: first second"
