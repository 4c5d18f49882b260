"""Whether SAEBench is there: it may be left out of an installation, for what it keeps old."""

from __future__ import annotations

from importlib.util import find_spec

from sae_plugins.base.errors import PluginError

_CURE = "pip install 'sae-bench>=0.6,<0.7', which brings numpy 1 and datasets 3"


def is_installed() -> bool:
    """Whether SAEBench can be imported; it is not."""
    return find_spec("sae_bench") is not None


def check(what: str) -> None:
    """Refuse what needs SAEBench where it is not installed.

    Args:
        what: one thing, as a sentence begins with it.

    Raises:
        PluginError: it is not.
    """
    if not is_installed():
        raise PluginError(f"{what} needs SAEBench, which is not installed: {_CURE}")
