"""Cached activations: which rows are trained on, and which are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
from sae_lens.training.activations_store import ActivationsStore

from sae_plugins.base.errors import PluginError
from sae_plugins.base.torchvision import without_videos
from sae_plugins.resume.division import check_rows
from sae_plugins.runs.texts.loading import reason
from sae_plugins.runs.texts.splits import TextSplits

_TOKENS = "token_ids"
"""The column of the tokens, which caches of older versions of SAELens lack."""


@dataclass(frozen=True)
class CachedActivations:
    """Rows of activations [context_size, d_in], the last of which are held out.

    Attributes:
        rows: how many there are in all.
        held: how many of them are held out.
        text: the tokens of both parts; none are held out where the cache has no tokens.
    """

    rows: int
    held: int
    text: TextSplits

    def narrow(
        self, store: ActivationsStore, heldout: bool, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """Have a store read one part of the rows; of those to train on, shard `k` of `count`."""
        assert store.cached_activation_dataset is not None
        first = self.rows - self.held
        k, count = shard
        to_train = range(k * first // count, (k + 1) * first // count)
        part = range(first, self.rows) if heldout else to_train
        store.cached_activation_dataset = store.cached_activation_dataset.select(part)


def cached_activations(
    config: Any, heldout_tokens: int, shards: int = 1
) -> CachedActivations | None:
    """The cached activations of a run; None if it computes its own.

    Args:
        config: SAELens' config of the run.
        heldout_tokens: how many tokens score the SAE.
        shards: data shards that share what is left to train on.

    Raises:
        PluginError: they are of another hook, size or length of prompts, or too few.
    """
    if not config.use_cached_activations:
        return None
    without_videos()
    path = config.cached_activations_path
    try:
        cached: Any = datasets.load_from_disk(path)
    except Exception as error:  # of its files, of many kinds
        raise PluginError(
            f"--cached_activations_path {path} cannot be read {reason(error)}; cache the "
            "activations again"
        ) from error
    _check(cached, config)
    batch = config.store_batch_size_prompts
    held = -(-heldout_tokens // (batch * config.context_size)) * batch
    if len(cached) < held + max(batch, held):
        raise PluginError(
            f"--cached_activations_path {config.cached_activations_path} is too small: of its "
            f"{len(cached)} rows, scoring takes {held}, and no fewer, nor than the {batch} of "
            "--store_batch_size_prompts, must be left to train on; lower --heldout_tokens"
        )
    if shards > 1:
        check_rows(len(cached) - held, shards, batch)
    return CachedActivations(len(cached), held, _text(cached, held, config.context_size))


def _check(cached: Any, config: Any) -> None:
    where = f"--cached_activations_path {config.cached_activations_path}"
    hook, size = config.hook_name, (config.context_size, config.sae.d_in)
    if hook not in cached.features:
        raise PluginError(
            f"{where} has no activations of --hook_name {hook}: its columns are "
            f"{', '.join(cached.column_names)}"
        )
    shape = getattr(cached.features[hook], "shape", None)
    if shape != size:
        raise PluginError(
            f"{where} has rows of shape {shape}, and this run wants {size}: --context_size, and "
            f"the size of {hook}"
        )
    if config.exclude_special_tokens and _TOKENS not in cached.column_names:
        raise PluginError(
            f"--exclude_special_tokens: {where} has no column {_TOKENS} that would tell them; "
            "leave it out, or cache the activations again"
        )


def _text(cached: Any, held: int, context_size: int) -> TextSplits:
    if _TOKENS not in cached.column_names:
        # SAELens wants a text, from which it reads no more than what its columns are
        return TextSplits([{"tokens": [0] * context_size}], None)
    tokens = cached.with_format(None).select_columns([_TOKENS]).rename_column(_TOKENS, "tokens")
    train = tokens.select(range(len(cached) - held)).to_iterable_dataset()
    if not held:
        return TextSplits(train, None)
    return TextSplits(
        train, tokens.select(range(len(cached) - held, len(cached))).to_iterable_dataset()
    )
