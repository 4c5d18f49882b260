"""Special tokens whose activations dwarf all others, and an SAE that would be trained on them.

The residual stream of many language models is tens of times as long at BOS as elsewhere. An SAE
that is trained on such positions spends its loss on them.
"""

from __future__ import annotations

import logging

import torch
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import get_special_token_ids
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.saelens import first_batch_seen
from sae_plugins.runs.setup import SAELensSettings

logger = logging.getLogger(__name__)

FLAG = "exclude_special_tokens"
OUTLIER = 5.0
"""Times the median norm, beyond which activations at special tokens are told of."""


def watch_special_tokens(store: ActivationsStore, settings: SAELensSettings) -> None:
    """Look at the first batch that is read to train on for special tokens that are outliers.

    They are warned of. Where a recipe of ours says nothing of them, they are an error: its settings
    are for activations without them.

    Args:
        store: it reads the text to train on, and has not begun.
        settings: the run's.
    """
    tokenizer = getattr(store.model, "tokenizer", None)
    if tokenizer is None:
        return
    excluded = store.exclude_special_tokens
    left_out = [] if excluded is None else excluded.tolist()
    special = sorted(set(get_special_token_ids(tokenizer)) - set(left_out))

    def see(acts: Tensor, tokens: Tensor | None) -> None:
        found = None if tokens is None else outlier(acts, tokens, special)
        if found is None:
            return
        token, norm, median = found
        what = (
            f"activations at the special token {tokenizer.decode([token])!r} are up to "
            f"{norm / median:,.0f} times as long as the median ({norm:,.1f} and {median:,.1f})"
        )
        if settings.recipe is not None and FLAG not in settings.runner:
            raise PluginError(
                f"{what}, and the recipe {settings.recipe} is not made for them: give --{FLAG} "
                "true, or false to train on them all the same"
            )
        logger.warning(
            "%s, and the SAE is trained on them, so that they may make up most of its loss; give "
            "--%s true to leave them out",
            *(what, FLAG),
        )

    first_batch_seen(store, see)


@torch.no_grad()
def outlier(acts: Tensor, tokens: Tensor, special: list[int]) -> tuple[int, float, float] | None:
    """The special token with the longest activation, if that is an outlier among all others.

    Args:
        acts: activations [n, d_in].
        tokens: their tokens [n].
        special: the tokens that are special.

    Returns:
        The token, its norm, and the median norm at tokens that are not special; None if there is
        no outlier.
    """
    is_special = torch.isin(tokens, torch.tensor(special, device=tokens.device))
    if not is_special.any() or is_special.all():
        return None
    norms = torch.linalg.vector_norm(acts, dim=-1, dtype=torch.float32)
    median = norms[~is_special].median().item()
    at = norms.where(is_special, 0).argmax()
    if not norms[at] > OUTLIER * median > 0:
        return None
    return int(tokens[at]), norms[at].item(), median
