"""One seed for everything that is random in a run."""

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices).

    SAELens draws initial weights and shuffles its activation buffer from torch's global state.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for the plugin `name`, independent of every other name's."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    # torch's generators take seeds below 2**63
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
