"""What `--dataset_path` names: a file, a folder, what `save_to_disk` left, or a name on the Hub.

Nothing is loaded to know, so that a command says at once what it cannot read.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import PluginError
from sae_plugins.base.nearby import not_there
from sae_plugins.base.secrets import without_secrets
from sae_plugins.runs.sources import is_path

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


def how_to_load(runner: Mapping[str, Any]) -> dict[str, Any] | None:
    """How `datasets` loads what `--dataset_path` names; None for what `save_to_disk` left.

    Args:
        runner: values by flag.

    Raises:
        PluginError: there is no such file or folder, or it cannot be told how it can be read.
    """
    source, path = str(runner["dataset_path"]), Path(runner["dataset_path"]).expanduser()
    if any((path / f"dataset_{name}.json").is_file() for name in ("dict", "info")):
        _refuse_config(runner, f"{path} was saved by save_to_disk, which keeps one")
        return None
    _check_name(path)
    if path.is_file():
        _refuse_config(runner, f"{path} is one file")
        found = _of_file(path)
    elif path.is_dir():
        found = _of_folder(path)
    elif "://" in source:
        raise PluginError(
            f"--dataset_path {without_secrets(source)} is an address: give the dataset's name on "
            "the Hub, such as OWNER/NAME, or a file that is on this machine"
        )
    elif _is_meant_here(source, path):
        raise PluginError(f"--dataset_path {path}{not_there(path, is_folder=False)}")
    else:
        found = {"path": str(path), "revision": runner.get("dataset_revision")}
    return {**found, "name": runner.get("dataset_config")}


def _is_meant_here(source: str, path: Path) -> bool:
    """Whether what is not there can be no name on the Hub, or is a file beside others here."""
    is_no_name = is_path(source) or len(path.parts) > 2
    return is_no_name or (kind_of(path) is not None and path.parent.is_dir())


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
    from huggingface_hub import metadata_load

    try:
        return card.is_file() and bool((metadata_load(card) or {}).get("configs"))
    except Exception:  # of YAML, which is said when it is loaded
        return False


def _is_data(file: Path, folder: Path) -> bool:
    from datasets.data_files import FILES_TO_IGNORE  # which takes seconds

    inside = file.relative_to(folder).parts
    is_hidden = any(part.startswith((".", "__")) for part in inside)
    return not is_hidden and file.name not in (*FILES_TO_IGNORE, TOKENIZATION)


def kind_of(file: Path) -> str | None:
    """Which of `KINDS` a file is, by its name; compressed or not."""
    suffix = file.suffix.lower()
    if suffix in _COMPRESSED:
        suffix = Path(file.stem).suffix.lower()
    return suffix if suffix in KINDS else None
