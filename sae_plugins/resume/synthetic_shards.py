"""Samples of a synthetic model in V data shards: each draws its part of a batch by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sae_lens.synthetic.training import SyntheticActivationIterator
from torch import Tensor

from sae_plugins.base.ranks import Ranks
from sae_plugins.base.seeds import (
    generator,
    isolated_random_state,
    random_states,
    set_random_states,
)
from sae_plugins.resume.division import own_shards


class SyntheticShards(SyntheticActivationIterator):
    """Whole batches of a synthetic model, each shard with a random state of its own.

    SAELens draws from the global random state, which is that of the shard meanwhile.
    """

    def __init__(
        self, samples: SyntheticActivationIterator, count: int, seed: int, ranks: Ranks
    ) -> None:
        """Divide the batches of an iterator.

        Args:
            samples: what draws them.
            count: how many shards there are; what `check_shards` lets pass.
            seed: of the run.
            ranks: who draws them.
        """
        vars(self).update(vars(samples))
        self.batch_size = samples.batch_size // count
        self._ranks, self._random = ranks, {}
        for k in own_shards(count, ranks):
            with isolated_random_state():
                torch.manual_seed(generator(seed, f"shard {k} of {count}").initial_seed())
                self._random[str(k)] = random_states()

    def __next__(self) -> Tensor:
        parts = []
        for k, states in self._random.items():
            with isolated_random_state():
                set_random_states(states)
                parts.append(super().__next__())
                self._random[k] = random_states()
        return self._ranks.whole(torch.cat(parts))

    def state_dict(self) -> dict[str, Any]:
        """The random states of all shards, whoever draws them."""
        return {k: state for found in self._ranks.all(self._random) for k, state in found.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where the same shards were, whoever drew them."""
        self._random = {k: state[k] for k in self._random}
