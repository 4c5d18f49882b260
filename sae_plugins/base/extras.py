"""Packages that only some commands need, and that `pip install 'sae-plugins[EXTRA]'` brings."""

from __future__ import annotations

import importlib
from typing import Any

from sae_plugins.base.errors import SaePluginsError


def imported(module: str, extra: str, what: str) -> Any:
    """A module of an extra.

    Raises:
        SaePluginsError: it is not installed; says that `what` needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SaePluginsError(
            f"{what} needs {module}: pip install 'sae-plugins[{extra}]'"
        ) from error
