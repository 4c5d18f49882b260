"""The run that some settings describe: on a language model, or on a synthetic one."""

from __future__ import annotations

from sae_plugins.runs.job import Job, JobSettings


def load_job(settings: JobSettings) -> Job:
    """The run, ready to start, with its model loaded.

    Raises:
        PluginError: something of the settings is wrong.
    """
    if settings.is_synthetic:
        from sae_plugins.runs.synthetic import SyntheticJob

        return SyntheticJob(settings)
    from sae_plugins.runs.language_model import LanguageModelJob

    return LanguageModelJob(settings)
