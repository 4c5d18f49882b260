"""The rows of a dataset: a file, a folder, what `save_to_disk` left, or a name on the Hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import FILES_TO_IGNORE
from huggingface_hub import metadata_load

from sae_plugins.base.errors import PluginError, did_you_mean
from sae_plugins.base.secrets import without_secrets
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.sources import SPLIT, is_path

TOKENIZATION = "sae_lens.json"
"""Where SAELens says how it tokenized a dataset."""
_TEXT = ("text", (("encoding", "utf-8-sig"),))  # a byte order mark is no text
KINDS: Mapping[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    ".jsonl": ("json", ()),
    ".ndjson": ("json", ()),
    ".json": ("json", ()),
    ".txt": _TEXT,
    ".parquet": ("parquet", ()),
    ".csv": ("csv", ()),
    ".tsv": ("csv", (("sep", "\t"),)),
    ".arrow": ("arrow", ()),
}
"""The files that are taken: which loader of `datasets` reads them, and how. None runs code."""
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_CODE = (".py", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill", ".npy")
_TAKEN = f"{', '.join(KINDS)}, each also with {', '.join(_COMPRESSED)}"
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
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        _refuse_config(runner, f"{path} was saved by save_to_disk, which keeps one")
        return _saved(path, runner.get("dataset_split"))
    streaming = bool(runner.get("streaming", True))
    if streaming and is_sliced:
        raise PluginError(
            f"--dataset_split {split}: a part of a split cannot be streamed, since its length is "
            "not known; add --streaming false"
        )
    found = _found(runner, path)
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
    path = Path(runner.get("dataset_path") or "").expanduser()
    saved = any((path / f"dataset_{name}.json").is_file() for name in ("dict", "info"))
    if not runner.get("dataset_path") or saved or runner.get("streaming", True):
        return None
    try:
        found = _found(runner, path)
        builder = datasets.load_dataset_builder(**found, trust_remote_code=False)
    except Exception:  # which is said when it is loaded
        return None
    return Path(builder.cache_dir)


def _found(runner: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """How `datasets` loads what `--dataset_path` names."""
    _check_name(path)
    if path.is_file():
        _refuse_config(runner, f"{path} is one file")
        found = _of_file(path)
    elif path.is_dir():
        found = _of_folder(path)
    elif is_path(str(runner["dataset_path"])) or (kind_of(path) and path.name == str(path)):
        raise PluginError(f"--dataset_path {path}: there is no such file or folder")
    elif "://" in str(runner["dataset_path"]):
        raise PluginError(
            f"--dataset_path {without_secrets(runner['dataset_path'])} is an address: give the "
            "dataset's name on the Hub, such as OWNER/NAME, or a file that is on this machine"
        )
    else:
        found = {"path": str(path), "revision": runner.get("dataset_revision")}
    return {**found, "name": runner.get("dataset_config")}


def _check_name(path: Path) -> None:
    """Refuse a file or a folder that `datasets` would look for elsewhere."""
    patterns = ("::", *("*?[" if path.is_dir() else ()))
    if path.exists() and (wrong := [each for each in patterns if each in str(path)]):
        raise PluginError(
            f"--dataset_path {path}: the datasets library takes {' and '.join(wrong)} in a path "
            "for a pattern; rename it"
        )


def _refuse_config(runner: Mapping[str, Any], what: str) -> None:
    if name := runner.get("dataset_config"):
        raise PluginError(f"--dataset_config {name}: {what}; leave it out")


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


def _of_file(path: Path) -> dict[str, Any]:
    """How `datasets` loads one file."""
    kind = kind_of(path)
    if kind is None:
        if path.suffix.lower() in _CODE:
            raise PluginError(
                f"--dataset_path {path}: loading a {path.suffix} file could run code that is in "
                f"it, so it is not read; give {_TAKEN}"
            )
        raise PluginError(
            f"--dataset_path {path}: its name does not tell what it holds; give {_TAKEN}"
        )
    if not os.access(path, os.R_OK):
        raise PluginError(f"--dataset_path {path} cannot be read: permission denied")
    if not path.stat().st_size:
        raise PluginError(f"--dataset_path {path} is empty")
    builder, how = KINDS[kind]
    return {"path": builder, "data_files": {"train": glob.escape(str(path))}, **dict(how)}


def _of_folder(folder: Path) -> dict[str, Any]:
    """How `datasets` loads a folder with files of one kind."""
    files = [file for file in folder.rglob("*") if file.is_file() and _is_data(file, folder)]
    kinds = {kind: file for file in sorted(files) if (kind := kind_of(file))}
    builders = {KINDS[kind]: kind for kind in kinds}
    if not kinds:
        names = ", ".join(sorted(file.name for file in files)[:3]) or "no files"
        raise PluginError(
            f"--dataset_path {folder} holds no dataset, but {names}; a folder must have files of "
            f"one kind, of {_TAKEN}"
        )
    if len(builders) > 1 and not _says_which(folder / "README.md"):
        named = " and ".join(str(kinds[kind].relative_to(folder)) for kind in builders.values())
        raise PluginError(
            f"--dataset_path {folder} has {named}, so it cannot be told which are the dataset: "
            "name one file, or a folder with files of one kind"
        )
    ((_, how), *_) = builders
    return {"path": str(folder), **(dict(how) if len(builders) == 1 else {})}


def _says_which(card: Path) -> bool:
    """Whether a dataset's card says which files are the dataset; others go by what most are."""
    try:
        return card.is_file() and bool((metadata_load(card) or {}).get("configs"))
    except Exception:  # of YAML, which is said when it is loaded
        return False


def _is_data(file: Path, folder: Path) -> bool:
    inside = file.relative_to(folder).parts
    is_hidden = any(part.startswith((".", "__")) for part in inside)
    return not is_hidden and file.name not in (*FILES_TO_IGNORE, TOKENIZATION)


def kind_of(file: Path) -> str | None:
    """Which of `KINDS` a file is, by its name; compressed or not."""
    suffix = file.suffix.lower()
    if suffix in _COMPRESSED:
        suffix = Path(file.stem).suffix.lower()
    return suffix if suffix in KINDS else None


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
    why = without_secrets(f"{type(error).__name__}: {' '.join(said.split())}")[:_LONGEST]
    cure = next((cure for words, cure in _CURES.items() if words in why), "")
    return f"({why.rstrip('. ')}){cure}"
