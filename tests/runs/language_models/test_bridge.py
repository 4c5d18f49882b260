"""A bridge that takes SAEs keeps the names of its hooks, and its hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import D_IN, save
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformer_lens.model_bridge import TransformerBridge

from sae_plugins.runs.language_models.hugging_face import Bridge

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.attn.hook_z")
TOKENS = torch.arange(3, 23)[None]


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Bridge:
    folder = tmp_path_factory.mktemp("models") / "gemma"
    return Bridge(str(save(folder, "Gemma2", query_pre_attn_scalar=8)), {})


@pytest.fixture(scope="module")
def plain(loader: Bridge) -> Any:
    """TransformerLens' own."""
    model = loader.hugging_face("cpu", torch.float32, attn_implementation="eager")
    return TransformerBridge.boot_transformers(
        loader.name, hf_model=model, tokenizer=loader.tokenizer, device="cpu"
    )


def calls(model: Any, hook: str) -> int:
    seen: list[Any] = []
    with model.hooks([(hook, lambda x, hook: seen.append(x))]):
        model(TOKENS)
    return len(seen)


@torch.no_grad()
def test_its_hooks_are_those_of_a_bridge(loader: Bridge, plain: Any) -> None:
    model = loader.load("cpu")
    assert list(model.hook_dict) == list(plain.hook_dict)
    (wanted, seen), (found, cache) = (
        each.run_with_cache(TOKENS, names_filter=[*HOOKS]) for each in (plain, model)
    )
    assert torch.equal(wanted, found)
    assert all(torch.equal(seen[hook], cache[hook]) for hook in HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
@torch.no_grad()
def test_an_sae_that_was_there_leaves_no_trace(hook: str, loader: Bridge, plain: Any) -> None:
    model = loader.load("cpu")
    sae = StandardSAE(StandardSAEConfig(D_IN, 8, metadata=SAEMetadata(hook_name=hook)))
    own = model(TOKENS)
    with model.saes([sae]):
        assert hook not in model.hook_dict
        assert calls(model, model.get_sae_hook_name(sae)) == 1
        assert not torch.equal(model(TOKENS), own)
    assert {name: point.name for name, point in model.hook_dict.items()} == {
        name: point.name for name, point in plain.hook_dict.items()
    }
    assert calls(model, hook) == 1
    assert torch.equal(model(TOKENS), own)
