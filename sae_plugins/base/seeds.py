"""One seed for everything that is random in a run."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices).

    SAELens draws initial weights and shuffles its activation buffer from torch's global state.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_data(seed: int) -> None:
    """Seed what orders a run's data, after its weights are drawn.

    Architectures draw different numbers of weights; the data is to be the same for all of them.
    """
    seed_everything(_derived(seed, "the data"))


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for the plugin `name`, independent of every other name's."""
    return torch.Generator(device).manual_seed(_derived(seed, name))


def _derived(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    # torch's generators take seeds below 2**63
    return int.from_bytes(digest[:8], "big") >> 1


def random_states() -> dict[str, Any]:
    """The global random states of python, numpy and torch, on the CPU and on every GPU."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` gave, on as many GPUs as there are."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Restore python's, numpy's and torch's global random states afterwards."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)
