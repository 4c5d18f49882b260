"""Plugins for training sparse autoencoders (SAEs) with SAELens.

The public API is small::

    import sae_plugins

    with sae_plugins.plugins("hybrid-order", options={"reorder": {"interval": 250}}, seed=0):
        LanguageModelSAETrainingRunner(cfg).run()   # or any other SAELens runner or SAETrainer

A plugin subclasses `Plugin` and marks its events, described in `sae_plugins.hookspecs`, with
`hookimpl`; `sae_plugins.testing` holds the contract tests that every plugin should pass.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_plugins import testing as testing
    from sae_plugins.attach import plugins as plugins
    from sae_plugins.checkpoints import Checkpoints as Checkpoints
    from sae_plugins.hookspecs import hookimpl as hookimpl
    from sae_plugins.plugin import Method as Method
    from sae_plugins.plugin import Plugin as Plugin
    from sae_plugins.plugin import PluginError as PluginError

__all__ = ["Checkpoints", "Method", "Plugin", "PluginError", "hookimpl", "plugins", "testing"]

_HOME = {
    "Checkpoints": "sae_plugins.checkpoints",
    "Method": "sae_plugins.plugin",
    "Plugin": "sae_plugins.plugin",
    "PluginError": "sae_plugins.plugin",
    "hookimpl": "sae_plugins.hookspecs",
    "plugins": "sae_plugins.attach",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Lazy: `sae-plugins --help` must not pay for pydantic, torch or sae_lens.
    if name == "testing":
        return importlib.import_module("sae_plugins.testing")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sae_plugins' has no attribute {name!r}")
