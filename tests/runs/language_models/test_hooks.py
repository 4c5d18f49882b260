"""Hooks by name: those of Hugging Face's layers, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from sae_plugins.runs.language_models.hooks import as_transformer_lens, near_hooks


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("model.layers.3", "blocks.3.hook_resid_post"),
        ("transformer.h.11", "blocks.11.hook_resid_post"),
        ("gpt_neox.layers.0", "blocks.0.hook_resid_post"),
        ("model.decoder.layers.7", "blocks.7.hook_resid_post"),
        ("model.layers.3.mlp", "model.layers.3.mlp"),
        ("model.layers", "model.layers"),
        ("blocks.3.hook_resid_pre", "blocks.3.hook_resid_pre"),
        ("", ""),
    ],
)
def test_a_layer_of_hugging_face_gives_the_residual_stream(hook: str, expected: str) -> None:
    assert as_transformer_lens(hook) == expected


def test_where_none_is_near_all_are_named_with_layers_as_one() -> None:
    names = [f"model.layers.{n}{part}" for n in range(3) for part in ("", ".mlp")]
    assert near_hooks("x", names) == "known: model.layers.N, model.layers.N.mlp, with N from 0 to 2"
    assert near_hooks("model.layers.1.mpl", names).startswith("did you mean 'model.layers.1.mlp'")
