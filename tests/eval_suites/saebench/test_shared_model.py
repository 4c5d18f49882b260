"""What is computed once is what the model computes, bit by bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_plugins.eval_suites.inputs.cache import Cache
from sae_plugins.eval_suites.saebench import shared_model as module
from sae_plugins.eval_suites.saebench.shared_model import SharedModel

RESID = "blocks.1.hook_resid_post"
HOOKS = [RESID, "blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"]
PROMPTS = ["a nurse has the first letter:", "book has the first letter:"]
BOTH = {"return_type": "both", "loss_per_token": True}
METHODS = {"forward", "run_with_hooks", "run_with_cache"}


@pytest.fixture
def tokens(lab) -> torch.Tensor:
    return lab.model.hooked.to_tokens(PROMPTS * 2)


@pytest.fixture
def shared(lab, tmp_path) -> Any:
    return lambda hook_name=RESID: SharedModel(lab.model, hook_name, Cache(tmp_path))


@pytest.fixture
def passes(lab, monkeypatch) -> list[int]:
    """Grows with every block that the model runs: the block's number."""
    blocks: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: blocks.append(i))
        for i, block in enumerate(lab.model.hooked.blocks)
    ]
    yield blocks
    for handle in handles:
        handle.remove()


def activations(model: Any, tokens: Any) -> Any:
    with model.answering():
        return model.activations(tokens)


def replace(acts: Any, hook: Any) -> Any:
    return acts * 0.5 + hook.layer()


def ablate(acts: Any, hook: Any) -> Any:
    return torch.zeros_like(acts)


def in_place(acts: Any, hook: Any) -> Any:
    acts[:, 1:] = 0
    return acts


def outputs(model: Any, tokens: Any, hook_name: str) -> list[Any]:
    """Of all that SAEBench asks a model for, one after the other."""
    layer = int(hook_name.split(".")[1])
    acts = {"names_filter": [hook_name], "stop_at_layer": layer + 1, "prepend_bos": False}
    hooked = [
        model.run_with_hooks(tokens, fwd_hooks=[(hook_name, function)], **BOTH)
        for function in (replace, ablate, in_place, ablate)
    ]
    clean = model(tokens, **BOTH)
    cached = model.run_with_cache(tokens, **acts)[1][hook_name]
    prompts = model.run_with_cache(PROMPTS, names_filter=[hook_name])[1][hook_name]
    logits = model(tokens, return_type="logits")
    return [*clean, *(part for output in hooked for part in output), cached, prompts, logits]


@pytest.mark.parametrize("hook_name", HOOKS)
@torch.no_grad()
def test_every_output_is_the_models_own(hook_name, lab, shared, tokens):
    own = outputs(lab.model.hooked, tokens, hook_name)
    first = shared(hook_name)
    for model in (first, first, shared(hook_name)):  # cold, warm, and from the disk
        with model.answering():
            found = outputs(lab.model.hooked, tokens, hook_name)
        for expected, output in zip(own, found, strict=True):
            assert torch.equal(expected, output)


@torch.no_grad()
def test_a_position_is_all_that_is_kept_of_prompts(lab, shared, tmp_path):
    own = lab.model.hooked.run_with_cache(PROMPTS, names_filter=[RESID])[1][RESID]
    for _ in range(2):
        model = shared()
        model.position = -6
        with model.answering():
            found = lab.model.hooked.run_with_cache(PROMPTS, names_filter=[RESID])[1][RESID]
        assert found.shape == own.shape
        assert torch.equal(found[:, -6], own[:, -6])
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.stat().st_size < own.numel() * 4 / 5
    other = shared()  # without a position it takes nothing for what it is not
    assert torch.equal(activations(other, lab.model.hooked.to_tokens(PROMPTS)), own)


@torch.no_grad()
def test_layers_run_once(lab, shared, tokens, passes):
    hooked, model = lab.model.hooked, shared()
    n_layers = hooked.cfg.n_layers

    def run(call: Any) -> list[int]:
        del passes[:]
        with model.answering():
            call()
        return passes[:]

    def with_hook(function: Any) -> Any:
        return lambda: hooked.run_with_hooks(tokens, fwd_hooks=[(RESID, function)], **BOTH)

    after = list(range(2, n_layers))
    assert run(lambda: hooked.run_with_cache(tokens, names_filter=[RESID])) == [0, 1]
    assert run(lambda: hooked.run_with_cache(tokens, names_filter=[RESID])) == []
    assert run(lambda: hooked(tokens, **BOTH)) == after
    assert run(lambda: hooked(tokens, **BOTH)) == []
    assert run(with_hook(ablate)) == after
    assert run(with_hook(ablate)) == []
    assert run(with_hook(replace)) == after
    assert run(with_hook(replace)) == after  # an SAE's own
    assert run(lambda: hooked(tokens, return_type="logits")) == after  # asked for otherwise


@torch.no_grad()
def test_what_a_hook_does_in_place_stays_its_own(lab, shared, tokens):
    model = shared()
    before = activations(model, tokens).clone()
    with model.answering():
        lab.model.hooked.run_with_hooks(tokens, fwd_hooks=[(RESID, in_place)], **BOTH)
        assert torch.equal(model.activations(tokens), before)


@torch.no_grad()
def test_other_models_hooks_dtypes_and_tokens_share_nothing(lab, shared, tokens, tmp_path):
    own = activations(shared(), tokens)
    (file,) = tmp_path.rglob("*.safetensors")
    other = {"hash": "other", "dtype": "other"}
    for name, value in other.items():
        facts = {"hooked": lab.model.hooked, "hash": lab.model.hash, "dtype": lab.model.dtype}
        model: Any = SimpleNamespace(**{**facts, name: value})
        assert torch.equal(activations(SharedModel(model, RESID, Cache(tmp_path)), tokens), own)
    activations(shared("blocks.1.hook_mlp_out"), tokens)
    activations(shared(), tokens[:1])
    activations(shared(), tokens)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5
    assert file.exists()


@torch.no_grad()
def test_memory_is_bounded(lab, shared, tokens, monkeypatch):
    one = sum(part.numel() * part.element_size() for part in lab.model.hooked(tokens, **BOTH))
    monkeypatch.setattr(module, "MEMORY", int(1.5 * one))
    model = shared()
    own = [lab.model.hooked(t, **BOTH) for t in (tokens, tokens.flip(0))]
    for _ in range(2):
        with model.answering():
            found = [lab.model.hooked(t, **BOTH) for t in (tokens, tokens.flip(0))]
        for expected, output in zip(own, found, strict=True):
            assert torch.equal(expected.logits, output.logits)
    held = sum(p.numel() * p.element_size() for output in model._logits.values() for p in output)
    assert held == one


@pytest.mark.parametrize("fails", [False, True])
def test_the_models_own_methods_come_back(fails, lab, shared, tokens):
    hooked = lab.model.hooked
    assert not METHODS & vars(hooked).keys()
    try:
        with shared().answering():
            assert vars(hooked).keys() >= METHODS
            if fails:
                hooked.run_with_cache(["no tokens"], names_filter=["another hook"])
    except AssertionError:
        assert fails
    assert not METHODS & vars(hooked).keys()
    assert not any(point.fwd_hooks for point in hooked.hook_dict.values())
    with torch.no_grad():
        assert hooked.run_with_cache(tokens)[0].shape[:2] == tokens.shape


@torch.no_grad()
def test_padding_on_the_left_goes_through_the_whole_model(lab, shared, monkeypatch):
    """There the layers after the hook depend on where the padding is."""
    tokenizer = lab.model.hooked.tokenizer
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    tokens = lab.model.hooked.to_tokens(["a", "a much longer text than that"])
    assert (tokens[0] == tokenizer.pad_token_id).any()
    own = outputs(lab.model.hooked, tokens, RESID)
    with shared().answering():
        found = outputs(lab.model.hooked, tokens, RESID)
    for expected, output in zip(own, found, strict=True):
        assert torch.equal(expected, output)
