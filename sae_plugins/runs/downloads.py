"""What a run would download before it starts, which a dry run only says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import datasets

from sae_plugins.base.hub import bytes_to_download
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.sources import REVISIONS, repository_of

_WEIGHTS = (r"[^/]+\.safetensors", r"pytorch_model[^/]*\.bin")
"""Names of files with a model's weights; the first kind that a repository has is read."""
_NO_DATA = re.compile(r"(.*/)?(\..*|README.*)")


def downloads(settings: SAELensSettings) -> dict[str, int]:
    """Bytes that have to be downloaded, by what they are; nothing that is read as it streams.

    A model's config and tokenizer, a few files of text, are not among them.
    """
    found = {}
    for revision, flag in REVISIONS.items():
        name = repository_of(flag, settings.model_name, settings.runner)
        is_model = flag == "model_name"
        if name is None or not (is_model or _is_kept(settings)):
            continue
        count = bytes_to_download(
            name,
            flag.partition("_")[0],
            settings.runner.get(revision),
            _weights if is_model else _data,
        )
        if count:
            found[f"--{flag} {name}"] = count
    return found


def _is_kept(settings: SAELensSettings) -> bool:
    """Whether a dataset on the Hub is downloaded as a whole."""
    runner = settings.runner
    return not (runner.get("use_cached_activations") or runner.get("streaming", True))


def _weights(names: list[str]) -> list[str]:
    kinds = ([name for name in names if re.fullmatch(kind, name)] for kind in _WEIGHTS)
    return next((kind for kind in kinds if kind), [])


def _data(names: list[str]) -> list[str]:
    return [name for name in names if not _NO_DATA.fullmatch(name)]


def only_read(settings: SAELensSettings) -> SAELensSettings:
    """The settings, such that text files are read as they stream: `datasets` keeps no copy."""
    path = settings.runner.get("dataset_path")
    if not path or (Path(path).expanduser() / "dataset_info.json").is_file():
        return settings
    if not settings.runner.get("streaming", True) and _is_prepared(settings):
        return settings
    return replace(settings, runner={**settings.runner, "streaming": True})


def _is_prepared(settings: SAELensSettings) -> bool:
    """Whether `datasets` has its copy already."""
    path = str(Path(settings.runner["dataset_path"]).expanduser())
    try:
        builder = datasets.load_dataset_builder(
            path, revision=settings.runner.get("dataset_revision"), trust_remote_code=False
        )
    except Exception:  # said when it is loaded
        return True
    return Path(builder.cache_dir).is_dir()
