"""The world's language model, and the way into TransformerLens."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sae_lens import HookedSAETransformer

CONTEXT = 256  # tokens, with <bos>


def to_hooked_transformer(
    model: Any, tokenizer: Any, name: str, device: str, dtype: str
) -> HookedSAETransformer:
    """TransformerLens' own Gemma conversion, with all its processing switched off.

    `HookedTransformer.from_pretrained` takes official names only, hence the config by hand.
    """
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gemma import convert_gemma_weights

    hf = model.config
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    config = HookedTransformerConfig(
        model_name=name,
        original_architecture="Gemma2ForCausalLM",
        n_layers=hf.num_hidden_layers,
        d_model=hf.hidden_size,
        d_head=hf.head_dim,
        n_heads=hf.num_attention_heads,
        n_key_value_heads=hf.num_key_value_heads,
        d_mlp=hf.intermediate_size,
        d_vocab=hf.vocab_size,
        n_ctx=CONTEXT,
        eps=hf.rms_norm_eps,
        act_fn="gelu_pytorch_tanh",
        initializer_range=hf.initializer_range,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_base=int(_rope_theta(hf)),
        rotary_dim=hf.head_dim,
        use_attn_scale=True,
        attn_scale=hf.query_pre_attn_scalar**0.5,
        use_local_attn=True,
        window_size=hf.sliding_window,
        attn_types=[kinds[kind] for kind in hf.layer_types],
        attn_scores_soft_cap=hf.attn_logit_softcapping,
        output_logits_soft_cap=hf.final_logit_softcapping,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        tokenizer_name=name,
        device=device,
        dtype=getattr(torch, dtype),
    )
    with warnings.catch_warnings():  # deprecated for TransformerLens 4, but what SAEBench takes
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = HookedSAETransformer(config, tokenizer, default_padding_side="right")
    source = model.to(device=device, dtype=config.dtype)
    hooked.load_and_process_state_dict(
        convert_gemma_weights(source, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    hooked.eval()
    return hooked


def _rope_theta(config: Any) -> float:
    """The rotary base: a field of the config, or of its `rope_parameters` in newer transformers."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or vars(config)
    return float(parameters["rope_theta"])
