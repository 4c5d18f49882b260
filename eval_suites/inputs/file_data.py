"""The data of files, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from random import Random
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.hub import commit_of
from sae_plugins.base.secrets import without_secrets
from sae_plugins.eval_suites.inputs.data import (
    OF_FILES,
    ON_REQUEST,
    SCHEMAS,
    TABLES,
    Data,
    Need,
    Record,
    digest,
    iterable,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BUILDERS = {
    ".arrow": "arrow",  # what `save_to_disk` writes, with JSON files beside it
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
}
COMPRESSIONS = (".gz", ".zst")
LANGUAGE_OF = {
    ".c": "C", ".h": "C", ".py": "Python", ".html": "HTML", ".java": "Java",
    ".php": "PHP", ".php3": "PHP", ".php4": "PHP", ".php5": "PHP", ".phps": "PHP", ".phpt": "PHP",
}  # fmt: skip
"""What the script of codeparrot/github-code makes of a path's suffix."""
SHUFFLED_TOGETHER = 10_000
"""Documents of open text that are shuffled at once."""


class FileData(Data):
    """Data files with splits in their names, such as `data/train-00000.parquet`.

    They are handed to the builders that come with the `datasets` library, one by one. Loading a
    dataset by its name instead would run its script if that was trusted once, would prefer a folder
    that happens to have its name, and offline would take the newest cached version for the pinned.
    """

    @abstractmethod
    def _listing(self, dataset: str) -> tuple[str, list[str]]:
        """What precedes the paths of a dataset's files, and these paths."""

    @abstractmethod
    def _missing(self, dataset: str, expected: str) -> SuiteError:
        """The error about a dataset that is not there."""

    @contextmanager
    def _reading(self, dataset: str) -> Iterator[None]:
        """Whatever goes wrong while reading names the dataset and the cure."""
        from datasets.exceptions import DatasetGenerationError

        try:
            yield
        except (SuiteError, MemoryError):
            raise
        except Exception as error:
            told = error.__cause__ if isinstance(error, DatasetGenerationError) else error
            cause = (str(told).strip() or type(told).__name__).splitlines()[0]
            cause = without_secrets(cause)[:300]
            raise SuiteError(f"{self._unreadable(dataset)} ({cause})") from error

    @abstractmethod
    def _unreadable(self, dataset: str) -> str:
        """What went wrong and what to do about it, without the cause."""

    def _open(self, dataset: str, config: str | None, split: str, streaming: bool) -> Any:
        from datasets import load_dataset

        with self._reading(dataset):
            root, paths = self._listing(dataset)
            builder, chosen = _choose(paths, config, split)
            if not chosen:
                where = f"{config}/" if config else ""
                raise self._missing(dataset, f"{where}{split}.parquet, .jsonl or .csv")
            return load_dataset(
                builder,
                data_files={split: [root + path for path in chosen]},
                split=split,
                streaming=streaming,
            )

    def _splits(self, dataset: str, need: Need) -> Mapping[str, Dataset]:
        return {split: self._open(dataset, None, split, False) for split in ("train", "test")}

    def file(self, dataset: str, name: str) -> str:
        """The text of a file."""
        with self._reading(dataset):
            return super().file(dataset, name)

    def _table(self, dataset: str, config: str) -> Dataset:
        rows: Dataset = self._open(dataset, config, "test", False)
        return rows

    def _rows(self, dataset: str, config: str | None, need: Need) -> list[Record]:
        with self._reading(dataset):
            rows = iter(self._open(dataset, config, "train", True))
            if dataset == "codeparrot/github-code":
                rows = map(_as_its_script_would, rows)
            return self.collect(dataset, config, need, rows)

    def text(self, dataset: str, skip_documents: int, seed: int) -> IterableDataset:
        """The documents in their order, shuffled within `SHUFFLED_TOGETHER` of them."""
        with self._reading(dataset):
            row: Record = next(iter(self._open(dataset, None, "train", True)), {})
        if not isinstance(row.get("text"), str):
            raise SuiteError(
                f"{self._place(dataset, 'train')}: no text in a column 'text'; "
                f"there are the columns {', '.join(row) or 'of no rows'}"
            )
        return iterable(self._documents, dataset=dataset, skip=skip_documents, seed=seed)

    def _documents(self, dataset: str, skip: int, seed: int) -> Iterator[Record]:
        rng = Random(seed)
        with self._reading(dataset):
            rows = islice(self._open(dataset, None, "train", True), skip, None)
            while block := [row["text"] for row in islice(rows, SHUFFLED_TOGETHER)]:
                rng.shuffle(block)
                yield from ({"text": text} for text in block)


def _choose(paths: Iterable[str], config: str | None, split: str) -> tuple[str, list[str]]:
    """The builder and the files of a split, sorted; of the first kind in `BUILDERS` there is."""
    pattern = re.compile(rf"(.*[/._ -])?{split}[/._ -]")
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        suffixes = [s for s in PurePosixPath(path).suffixes if s not in COMPRESSIONS]
        inside = path.startswith(f"{config}/") if config else True
        if suffixes and suffixes[-1] in BUILDERS and inside and pattern.match(path):
            found.setdefault(BUILDERS[suffixes[-1]], []).append(path)
    return next(((b, found[b]) for b in BUILDERS.values() if b in found), ("", []))


def _as_its_script_would(row: Record) -> Record:
    """The columns of codeparrot/github-code, whose files have others."""
    if "content" not in row:
        return row
    language = LANGUAGE_OF.get(PurePosixPath(row["path"]).suffix)
    return {"code": row["content"], "language": language}


class HubData(FileData):
    """The Hugging Face Hub, each dataset at one commit.

    Of a dataset that has a script and no parquet files, it is a commit of what the Hub itself
    converted, its branch `refs/convert/parquet`.

    """

    name = "hub"

    def __init__(self, revisions: Mapping[str, str] | None = None) -> None:
        self.revisions: dict[str, str] = dict(revisions or {})  # one given is the one that is read
        self._files: dict[str, list[str]] = {}

    def fingerprint(self, dataset: str, config: str | None = None) -> str:
        """The sha of the commit."""
        if dataset in OF_FILES:
            return self._commit(dataset)
        with self._reading(dataset):
            self._listing(dataset)
        return self.revisions[dataset]

    def lack_of_file(self, dataset: str, name: str) -> str | None:
        """Says whom to ask for what is not on the Hub."""
        if dataset not in ON_REQUEST:
            return None
        return (
            f"needs {name} of {dataset}, which is not on the Hub: ask its authors for it at "
            f"{ON_REQUEST[dataset]}, put it at FOLDER/{dataset}/{name}, with the suite's other "
            "datasets beside it, and use --data FOLDER"
        )

    def path(self, dataset: str, name: str) -> Path:
        """At the dataset's commit; offline, as it was downloaded before."""
        from huggingface_hub import hf_hub_download

        if lack := self.lack_of_file(dataset, name):
            raise SuiteError(lack)
        with self._reading(dataset):
            revision = self._commit(dataset)
            return Path(hf_hub_download(dataset, name, repo_type="dataset", revision=revision))

    def _commit(self, dataset: str) -> str:
        if dataset not in self.revisions:
            commit = commit_of(dataset, "dataset")
            if commit is None:
                raise SuiteError(self._unreadable(dataset))
            self.revisions[dataset] = commit
        return self.revisions[dataset]

    def _listing(self, dataset: str) -> tuple[str, list[str]]:
        from huggingface_hub import HfApi

        if dataset not in self._files:
            api = HfApi()
            info = api.dataset_info(dataset, revision=self.revisions.get(dataset))
            files = _names(info)
            script = PurePosixPath(dataset).name + ".py"
            if script in files and not any(file.endswith(".parquet") for file in files):
                info = api.dataset_info(dataset, revision="refs/convert/parquet")
                files = _names(info)
            self._files[dataset] = files
            self.revisions[dataset] = str(info.sha)
        return f"hf://datasets/{dataset}@{self.revisions[dataset]}/", self._files[dataset]

    def _missing(self, dataset: str, expected: str) -> SuiteError:
        return SuiteError(
            f"dataset {dataset} on the Hub, at {self.revisions[dataset]}, has no {expected}; bring "
            "it with --data FOLDER (its script, if it has one, is never run)"
        )

    def _unreadable(self, dataset: str) -> str:
        return (
            f"dataset {dataset} cannot be read from the Hub: check the network, the name and your "
            f"access to it, or put a copy of its files into FOLDER/{dataset} and use --data FOLDER"
        )


def _names(info: Any) -> list[str]:
    return [sibling.rfilename for sibling in info.siblings or ()]


class FolderData(FileData):
    """A folder with a folder for each dataset, named like it: `FOLDER/LabHC/bias_in_bios/`.

    In it are `train` and `test`, as parquet, JSON lines or CSV, or what `save_to_disk` writes, or a
    copy of the dataset's repository; parallel text is in a folder for each pair of languages.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)

    def fingerprint(self, dataset: str, config: str | None = None) -> str:
        """A hash of the names and bytes of the data files."""
        root, paths = self._listing(dataset)
        chosen = {p for split in ("train", "test") for p in _choose(paths, config, split)[1]}
        if dataset in OF_FILES:
            chosen = {path for path in paths if path.endswith((".json", ".jsonl"))}
        if not chosen:
            raise self._missing(dataset, "train.parquet, .jsonl or .csv")
        return digest([Path(root, path) for path in sorted(chosen)], Path(root))

    def lack_of_file(self, dataset: str, name: str) -> str | None:
        """Says where it must lie."""
        path = self.folder / dataset / name
        if path.is_file():
            return None
        if dataset in ON_REQUEST:
            return (
                f"needs {path}, which is not there: ask the authors of {dataset} for it at "
                f"{ON_REQUEST[dataset]}, and put it there"
            )
        return self._lack(path, dataset)

    def lack_of_table(self, dataset: str, config: str) -> str | None:
        """Says where it must lie."""
        if _choose(self._listing(dataset)[1], config, "test")[1]:
            return None
        return self._lack(self.folder / dataset / config / "test.parquet, .jsonl or .csv", dataset)

    def _lack(self, path: Path, dataset: str) -> str:
        return (
            f"needs {path}, which is not there: download the dataset {dataset} of the Hugging Face "
            f"Hub into {self.folder / dataset}"
        )

    def path(self, dataset: str, name: str) -> Path:
        """It may lie anywhere if there is a link to it."""
        if lack := self.lack_of_file(dataset, name):
            raise SuiteError(lack)
        return self.folder / dataset / name

    def _listing(self, dataset: str) -> tuple[str, list[str]]:
        root = (self.folder / dataset).resolve()
        paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        # `datasets` leaves its own caches beside arrow files; hidden folders are the Hub's
        kept = [p for p in paths if not p.name.startswith("cache-") and p.parts[0][0] != "."]
        return f"{root}{os.sep}", [path.as_posix() for path in kept]

    def _missing(self, dataset: str, expected: str) -> SuiteError:
        schema = SCHEMAS.get(dataset)
        columns = ", ".join(schema.columns if schema else TABLES.get(dataset, ("text",)))
        return SuiteError(
            f"{self.folder / dataset}: no {expected}; it should hold dataset {dataset} "
            f"with the columns {columns}"
        )

    def _unreadable(self, dataset: str) -> str:
        return f"{self.folder / dataset} cannot be read"
