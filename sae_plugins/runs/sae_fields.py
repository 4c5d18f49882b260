"""What the fields of an SAE must be, as far as they show it by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_plugins.base.errors import PluginError, Problems
from sae_plugins.framework.architectures import Architecture

D_SAE_PER_D_IN = 4
"""What d_sae is in a run that does not say it."""


def check_fields(
    row: Architecture, fields: Mapping[str, Any], hook_name: str, device: str | None
) -> None:
    """Refuse fields of an SAE's config that do not fit together.

    Args:
        row: the SAE's architecture.
        fields: those that somebody set; without `d_sae`, k may be as large as it likes.
        hook_name: "" for none.
        device: where the SAE lives; None if that is not known yet.

    Raises:
        PluginError: a sentence for each.
    """
    problems = Problems()
    k, d_sae = fields.get("k"), fields.get("d_sae")
    if row.k_per and k is not None:
        if row.k_per == "token" and k != int(k):
            problems.add(f"--k {k}: {row.name} SAEs need a whole number")
        if d_sae is not None and k > d_sae:
            problems.add(f"--k {k} must be at most the --d_sae {d_sae}")
    if fields.get("reshape_activations") == "hook_z" and not hook_name.endswith("_z"):
        problems.add(
            "--reshape_activations hook_z is for a --hook_name that ends in hook_z; leave it out"
        )
    mode = fields.get("jumprelu_sparsity_loss_mode")
    if mode == "quadratic" and fields.get("target_l0") is None:
        problems.add("--jumprelu_sparsity_loss_mode quadratic needs --target_l0, a number")
    sparse = row.sparse and fields.get("use_sparse_activations")
    if sparse and device == "cpu" and fields.get("rescale_acts_by_decoder_norm", True):
        problems.add(
            "--use_sparse_activations: PyTorch cannot train topk SAEs with them on a cpu; leave it "
            "out, or add --rescale_acts_by_decoder_norm false"
        )
    if problems:
        raise PluginError(*problems.sentences)
