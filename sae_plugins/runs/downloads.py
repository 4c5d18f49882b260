"""What a run would download and copy before it starts, which a dry run only says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import datasets

from sae_plugins.base.hub import bytes_to_download
from sae_plugins.base.patches import replaced
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.sources import REVISIONS, repository_of
from sae_plugins.runs.texts.loading import copy_of

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


@contextmanager
def copies_in(scratch: Path, settings: SAELensSettings) -> Iterator[None]:
    """Have `datasets` put the copy that it makes of the run's dataset there, while this is open.

    A copy that it has made before serves as it is.
    """
    elsewhere = {
        "HF_DATASETS_CACHE": scratch / "datasets",
        "DOWNLOADED_DATASETS_PATH": scratch / "datasets" / "downloads",
    }
    with ExitStack() as stack:
        own = Path(datasets.config.HF_DATASETS_CACHE)
        stack.enter_context(replaced(datasets.config, **elsewhere))
        copy = copy_of(settings)
        if copy is not None and (own / copy.relative_to(scratch / "datasets")).is_dir():
            stack.close()
        yield
