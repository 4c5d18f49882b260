"""The run that some settings describe: on a language model, or on a synthetic one."""

from __future__ import annotations

from sae_plugins.runs.setup import SAELensSettings, Setup


def load_setup(settings: SAELensSettings, *, is_loaded: bool = True) -> Setup:
    """The run, ready to start, with its model loaded; else only what its config tells.

    Raises:
        PluginError: something of the settings is wrong.
    """
    if settings.is_synthetic:
        from sae_plugins.runs.synthetic import SyntheticSetup

        return SyntheticSetup(settings)
    from sae_plugins.runs.language_model import LanguageModelSetup

    return LanguageModelSetup(settings, is_loaded=is_loaded)
