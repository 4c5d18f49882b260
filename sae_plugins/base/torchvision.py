"""datasets 3 beside a torchvision that has no `VideoReader` any more, as newer ones have none.

datasets asks torchvision for that class at every value of which it makes a tensor, once anything
has imported torchvision. Cached activations are read as tensors, and so are tokens by SAELens.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module


def without_videos() -> None:
    """Have datasets make tensors of numbers where it cannot read videos anyway."""
    import datasets

    with suppress(ImportError):
        if hasattr(import_module("torchvision.io"), "VideoReader"):
            return
    datasets.config.TORCHVISION_AVAILABLE = False
