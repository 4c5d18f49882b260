"""Arguments of `from_pretrained`: those that may be given, and what is said of all others."""

from __future__ import annotations

from typing import Any

import pytest

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.language_models.kwargs import CLASSES, check_kwargs


@pytest.mark.parametrize(
    ("model_class", "kwargs"),
    [
        ("HookedTransformer", None),
        ("HookedTransformer", {"center_writing_weights": False, "n_devices": 2, "n_ctx": None}),
        ("HookedTransformer", {"dtype": "bfloat16", "revision": "main"}),
        ("TransformerBridge", {"torch_dtype": "float32"}),
        (
            "AutoModelForCausalLM",
            {"attn_implementation": "sdpa", "device_map": {"": "cpu"}},
        ),
        ("HookedMamba", {}),
    ],
)
def test_what_may_be_given(model_class: str, kwargs: dict[str, Any]) -> None:
    check_kwargs(kwargs, model_class)


@pytest.mark.parametrize(
    ("model_class", "kwargs", "said"),
    [
        *((name, {"trust_remote_code": True}, "never runs code") for name in CLASSES),
        ("AutoModelForCausalLM", {"trust_remote_code": False}, "never runs code"),
        ("AutoModelForCausalLM", {"use_kernels": True}, "never runs code"),
        (
            "AutoModelForCausalLM",
            {"attn_implementation": "kernels-community/flash-attn"},
            "attn_implementation cannot be 'kernels-community/flash-attn': eager, sdpa",
        ),
        ("AutoModelForCausalLM", {"device_map": "some/where"}, "device_map cannot be"),
        ("AutoModelForCausalLM", {"fold_ln": True}, "'fold_ln' is not among those"),
        ("HookedTransformer", {"attn_implementation": "eager"}, "is not among those"),
        ("HookedTransformer", {"fold_nl": True}, "did you mean 'fold_ln'"),
        ("HookedTransformer", {"n_devices": True}, "n_devices cannot be True: a whole number"),
        ("HookedTransformer", {"dtype": "int8"}, "dtype cannot be 'int8': float32"),
        ("HookedTransformer", {"token": "hf_abc"}, "set HF_TOKEN"),
        ("HookedMamba", {"dtype": "float32"}, "it takes none"),
    ],
)
def test_what_may_not(model_class: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        check_kwargs(kwargs, model_class)
    assert "hf_abc" not in str(caught.value)
