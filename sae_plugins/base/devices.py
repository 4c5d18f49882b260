"""Devices of torch that can hold numbers."""

from __future__ import annotations

from sae_plugins.base.errors import SaePluginsError


def check_device(name: str, device: str) -> None:
    """Refuse a device that is not there.

    Args:
        name: the flag that gives it, such as "device".
        device: as torch calls it, such as "cuda:1".

    Raises:
        SaePluginsError: it cannot be used, and why.
    """
    import torch

    if device.startswith("cpu:"):
        raise SaePluginsError(f"--{name} {device}: there is one cpu; give --{name} cpu")
    try:
        torch.zeros(1, device=device).item()  # a "meta" device holds no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SaePluginsError(
            f"--{name} {device} cannot be used: {reason}; try --{name} cpu"
        ) from error
