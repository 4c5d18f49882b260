"""What every test starts from: seeded generators, one thread, quiet logs."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same global random state at the start of every test; torch only where it is imported."""
    random.seed(0)
    np.random.seed(0)
    import sys

    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """SAELens logs and tqdm draws bars; neither belongs in a test report."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)
