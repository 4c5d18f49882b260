"""The rows of a dataset: a file, a folder, what `save_to_disk` left, or a name on the Hub."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from sae_plugins.base.errors import PluginError, did_you_mean
from sae_plugins.base.secrets import without_secrets
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.sources import SPLIT
from sae_plugins.runs.texts.found import how_to_load

_LONGEST = 300
_NO_ROWS = ("corresponds to no data", "at least one example when writing data")
"""What the `datasets` library says where nothing is wrong but that there are no rows."""


def load_rows(settings: SAELensSettings) -> Any:
    """A `Dataset`, or an `IterableDataset` where it is streamed; its code is never run.

    Raises:
        PluginError: there is none, or it cannot be told what it is, or how it can be read.
    """
    runner = settings.runner
    path = Path(runner["dataset_path"]).expanduser()
    split = runner.get("dataset_split") or SPLIT
    is_sliced = bool({*"[+"} & {*split})
    found = how_to_load(runner)
    if found is None:
        return _saved(path, runner.get("dataset_split"))
    streaming = bool(runner.get("streaming", True))
    if streaming and is_sliced:
        raise PluginError(
            f"--dataset_split {split}: a part of a split cannot be streamed, since its length is "
            "not known; add --streaming false"
        )
    return _loaded(
        str(path),
        lambda: datasets.load_dataset(
            **found, split=split, streaming=streaming, trust_remote_code=False
        ),
    )


def copy_of(settings: SAELensSettings) -> Path | None:
    """Where `datasets` keeps the copy that it makes of what is not streamed; None if it makes none.

    Nothing is copied yet.
    """
    runner = settings.runner
    if not runner.get("dataset_path") or runner.get("streaming", True):
        return None
    try:
        found = how_to_load(runner)
        if found is None:
            return None
        builder = datasets.load_dataset_builder(**found, trust_remote_code=False)
    except Exception:  # which is said when it is loaded
        return None
    return Path(builder.cache_dir)


def _saved(folder: Path, split: str | None) -> datasets.Dataset:
    """A split, or a part of one, of what `save_to_disk` wrote."""
    saved = _loaded(str(folder), lambda: datasets.load_from_disk(str(folder)))
    if isinstance(saved, datasets.Dataset):
        own = str(saved.split or SPLIT)
        split, parts = split or own, {own: saved}
    else:
        split, parts = split or SPLIT, {str(name): part for name, part in saved.items()}
    named = [each.partition("[")[0] for each in split.split("+")]
    if missing := [name for name in named if name not in parts]:
        raise PluginError(
            f"--dataset_split {split}: {folder} has no split {missing[0]!r}; "
            f"{did_you_mean(missing[0], parts)}"
        )
    if split in parts:
        return parts[split].with_format(None)
    lengths = {name: len(part) for name, part in parts.items()}
    chosen = _loaded(
        f"{folder} --dataset_split {split}",
        lambda: datasets.ReadInstruction.from_spec(split).to_absolute(lengths),
    )
    return datasets.concatenate_datasets(
        [parts[each.splitname].select(range(each.from_, each.to) or []) for each in chosen]
    ).with_format(None)


def _loaded(what: str, load: Callable[[], Any]) -> Any:
    """What is loaded, which may be without rows; whatever goes wrong is said."""
    try:
        return load()
    except Exception as error:  # network, hub and file errors of many kinds
        why = reason(error)
        if any(words in why for words in _NO_ROWS):
            return datasets.Dataset.from_dict({})
        raise PluginError(f"--dataset_path {what} cannot be loaded {why}") from error


_CURES = {
    "Config name is missing": "; choose one with --dataset_config NAME",
    "BuilderConfig": "; choose another --dataset_config",
    "plit": "; choose one with --dataset_split NAME",
    "doesn't exist on the Hub": "; there is no such file or folder here, either",
    "codec can't decode": "; save the file as UTF-8",
    "Column() changed from object": '; each row must be an object, such as {"text": "..."}',
    "JSON parse error: Invalid value. in row 0": "; the file must be JSON, in UTF-8",
    "dataset script": "; a dataset's script is never run, so name the files with its data",
    "custom code": "; a dataset's script is never run, so name the files with its data",
}
"""What helps, by what the `datasets` library says."""


_FOR_PROGRAMMERS = "Example of usage|Make sure you have read|Please pass the argument"
"""How advice of the `datasets` library begins that helps in Python alone."""


def reason(error: BaseException) -> str:
    """What went wrong in a library, in its words and in parentheses, and the cure."""
    from datasets.exceptions import DatasetGenerationError

    while isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    said, *_ = re.split(_FOR_PROGRAMMERS, str(error), maxsplit=1)
    why = without_secrets(f"{type(error).__name__}: {' '.join(said.split())}").rstrip(". ")
    cure = next((cure for words, cure in _CURES.items() if words in why), "")
    return f"({textwrap.shorten(why, _LONGEST, placeholder=' ...')}){cure}"
