"""How a run's text is cut into data shards, and which of them a rank reads; no slow imports."""

from __future__ import annotations

from math import gcd

from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import Ranks

SHARDS = 8
"""Data shards of a run on several ranks that names no number, if that many can be divided."""


def shards_for(ranks: int) -> int:
    """Into how many data shards a run is cut that is started on so many ranks."""
    return 1 if ranks == 1 else SHARDS if SHARDS % ranks == 0 else ranks


def check_shards(count: int, batch: int, ranks: int) -> None:
    """Refuse shards that cannot be shared by the ranks, or that cannot share a batch.

    Raises:
        PluginError: says which numbers do not divide.
    """
    if count < 1:
        raise PluginError(f"data_shards is {count}: give 1 or more")
    if count % ranks:
        shards = f"{count} data shard" + ("" if count == 1 else "s")
        raise PluginError(
            f"{shards} cannot be shared by {ranks} rank{'' if ranks == 1 else 's'}: start as many "
            f"as divide {count}, or, for new SAEs, set data_shards to {shards_for(ranks)}"
        )
    if batch % count:
        raise PluginError(
            f"--data_shards {count}: a batch of {batch} tokens cannot be shared by them; give a "
            f"--train_batch_size_tokens that {count} divides, such as {-(-batch // count) * count}"
        )


def check_buffer(count: int, prompts: int, positions: int) -> None:
    """Refuse a buffer of activations that shards cannot share.

    Raises:
        PluginError: says which numbers do not divide.
    """
    if prompts * positions % count:
        step = count // gcd(count, positions)
        raise PluginError(
            f"--data_shards {count}: a buffer of {prompts} prompts of {positions} tokens cannot be "
            f"shared by them; give an --n_batches_in_buffer that {step} divides, such as "
            f"{-(-prompts // step) * step}"
        )


def check_rows(rows: int, count: int, batch: int) -> None:
    """Refuse cached activations of which a shard has less than a batch, and can read nothing.

    Raises:
        PluginError: says how many there are, and how many must be there.
    """
    if rows < count * batch:
        raise PluginError(
            f"--data_shards {count}: the {rows} rows of cached activations to train on are too few "
            f"for them, each of which reads {batch} at a time (--store_batch_size_prompts); cache "
            f"{count * batch} or more, or lower either number"
        )


def own_shards(count: int, ranks: Ranks) -> range:
    """The numbers of the shards that a rank reads."""
    each = count // ranks.size
    return range(ranks.rank * each, (ranks.rank + 1) * each)
