"""Plugins for training sparse autoencoders (SAEs) with SAELens.

The public API is small::

    import sae_plugins

    with sae_plugins.plugins("hybrid-order", options={"reorder": {"interval": 250}}, seed=0):
        LanguageModelSAETrainingRunner(cfg).run()   # or any other SAELens runner or SAETrainer

A plugin subclasses `Plugin` and marks its events, which `sae_plugins.framework.hookspecs`
describes, with `hookimpl`; `sae_plugins.testing` holds the contract tests for plugins.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_plugins import testing as testing
    from sae_plugins.base.errors import PluginError as PluginError
    from sae_plugins.framework.attach import plugins as plugins
    from sae_plugins.framework.hookspecs import hookimpl as hookimpl
    from sae_plugins.framework.plugin import Method as Method
    from sae_plugins.framework.plugin import Plugin as Plugin
    from sae_plugins.resume.checkpoints import Checkpoints as Checkpoints
    from sae_plugins.runs.recorded import recorded as recorded

__all__ = [
    *("Checkpoints", "Method", "Plugin", "PluginError"),
    *("hookimpl", "plugins", "recorded", "testing"),
]

_HOME = {
    "Checkpoints": "sae_plugins.resume.checkpoints",
    "Method": "sae_plugins.framework.plugin",
    "Plugin": "sae_plugins.framework.plugin",
    "PluginError": "sae_plugins.base.errors",
    "hookimpl": "sae_plugins.framework.hookspecs",
    "plugins": "sae_plugins.framework.attach",
    "recorded": "sae_plugins.runs.recorded",
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
