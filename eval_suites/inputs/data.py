"""The data that suites read: of the embedded world, of the Hugging Face Hub, or of a folder.

SAEBench asks for its datasets by their names on the Hub, and trusts their code. Whatever answers
here keeps these names and the columns of `SCHEMAS`, runs nobody's code, says which version it read,
and refuses where a class has fewer rows than a metric takes, before anything is computed:

    dataset                               columns                          a cell is
    LabHC/bias_in_bios                    hard_text, profession, gender    profession x gender
    canrager/amazon_reviews_mcauley_1and5 text, category, rating           category x rating
    fancyzhx/ag_news                      text, label                      a label
    codeparrot/github-code                code, language                   a language
    Helsinki-NLP/europarl                 translation {language: text}     a language
    open text, by any name                text
"""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from pathlib import Path, PurePosixPath
from random import Random
from typing import TYPE_CHECKING, Any

import xxhash

from sae_plugins.base.errors import SuiteError, without_secrets

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Row = Mapping[str, Any]
Cell = tuple[Any, ...]


@dataclass(frozen=True)
class Need:
    """How many rows a metric takes of each cell, and which classes are in use."""

    train: int
    test: int
    classes: tuple[Any, ...]
    """As stored in the rows: profession or category ids, labels, languages."""


@dataclass(frozen=True)
class Schema:
    """What SAEBench reads of a dataset."""

    text: str
    """The column of the text: a string, or for parallel text one per language."""
    label: str | None = None
    """The column of the class; None where it is the first language of the configuration."""
    attribute: str | None = None
    """The column of the second attribute, balanced within each class."""
    values: tuple[Any, ...] = ()
    """The values of that attribute."""
    streamed: bool = False
    """SAEBench reads the train split row by row, and splits the rows itself."""
    longer_than: int = -1
    """SAEBench skips a text of no more characters than this."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return tuple(c for c in (self.text, self.label, self.attribute) if c is not None)

    def cells(self, classes: Iterable[Any]) -> list[Cell]:
        """All cells of these classes."""
        return list(product(classes, self.values) if self.attribute else product(classes))

    def cell_of(self, row: Row, config: str | None) -> Cell:
        """The cell of a row."""
        if self.label is None:
            return (_language(config),)
        return tuple(row[column] for column in self.columns[1:])

    def text_of(self, row: Row, config: str | None) -> Any:
        """The text of a row, in the first language of the configuration; None if there is none."""
        value = row[self.text]
        if self.label is None:
            return value.get(_language(config)) if isinstance(value, Mapping) else None
        return value


SCHEMAS: Mapping[str, Schema] = {
    "LabHC/bias_in_bios": Schema("hard_text", "profession", "gender", (0, 1)),
    "canrager/amazon_reviews_mcauley_1and5": Schema("text", "category", "rating", (1.0, 5.0)),
    "fancyzhx/ag_news": Schema("text", "label"),
    "codeparrot/github-code": Schema("code", "language", streamed=True, longer_than=534),
    "Helsinki-NLP/europarl": Schema("translation", streamed=True),
}


def _language(config: str | None) -> str:
    """`"fr"` of `"fr-it"`: SAEBench always wants the first."""
    return (config or "").partition("-")[0]


# --- what all sources have in common --------------------------------------------------------------


class Data(ABC):
    """Where suites get their data from."""

    name: str
    """`"world"`, `"hub"`, or the folder."""
    revisions: Mapping[str, str] = {}
    """The commits that were read on the Hub, by the dataset's name."""

    def load(self, dataset: str, config: str | None, need: Need) -> Any:
        """A dataset by its name on the Hub, with enough rows of every cell that is needed.

        Args:
            dataset: a name of `SCHEMAS`.
            config: the pair of languages of parallel text, such as `"fr-it"`: its first language
                is the class.
            need: how many rows of which cells. Where categories or ratings are pooled, the cells
                hold enough if together they do.

        Returns:
            `{"train": Dataset, "test": Dataset}`, or for a streamed dataset a list of rows: those
            of the classes needed that SAEBench does not skip, in their order, until there is one
            row more of each class than `train + test`, which is where SAEBench stops reading.

        Raises:
            SuiteError: it cannot be had, a column is missing, or a cell has too few rows.
        """
        schema = SCHEMAS.get(dataset)
        if schema is None:
            raise SuiteError(f"dataset {dataset!r}: known are {', '.join(SCHEMAS)}")
        if schema.streamed:
            return self._rows(dataset, config, need)
        splits = self._splits(dataset, need)
        for split, least in (("train", need.train), ("test", need.test)):
            rows = splits[split]
            self._check_columns(dataset, split, rows.column_names)
            if rows.features[schema.text].dtype not in ("string", "large_string"):
                raise SuiteError(
                    f"{self._place(dataset, split)}: column {schema.text!r} holds no text"
                )
            have = Counter(zip(*(rows[column] for column in schema.columns[1:]), strict=True))
            self._check_cells(dataset, split, have, schema.cells(need.classes), least)
        return splits

    @abstractmethod
    def text(self, dataset: str, skip_documents: int, seed: int) -> IterableDataset:
        """Open text, one document a row in the one column `text`.

        Args:
            dataset: its name; the world has one text only, whatever the name.
            skip_documents: how many documents to leave out from its start, where an SAE may have
                been trained on them.
            seed: which of the documents come first; it cannot be undone by another shuffling.

        Raises:
            SuiteError: it cannot be had, or holds no text; also while it is read.
        """

    @abstractmethod
    def fingerprint(self, dataset: str, config: str | None = None) -> str:
        """Which version of a dataset this is; the same text gives the same one.

        Raises:
            SuiteError: there is no such dataset.
        """

    @abstractmethod
    def _splits(self, dataset: str, need: Need) -> Mapping[str, Dataset]:
        """The splits `train` and `test`, of at least the needed classes."""

    @abstractmethod
    def _rows(self, dataset: str, config: str | None, need: Need) -> list[Row]:
        """The rows of a streamed dataset, as `_collect` chooses them."""

    def _place(self, dataset: str, split: str, config: str | None = None) -> str:
        name = f"{dataset} ({config})" if config else dataset
        return f"{name} of {self.name!r}, split {split!r}"

    def _check_columns(self, dataset: str, split: str, columns: Iterable[str]) -> None:
        expected = SCHEMAS[dataset].columns
        missing = [column for column in expected if column not in set(columns)]
        if missing:
            raise SuiteError(
                f"{self._place(dataset, split)}: no column {missing[0]!r}; "
                f"expected are the columns {', '.join(expected)}"
            )

    def _check_cells(
        self,
        dataset: str,
        split: str,
        have: Mapping[Cell, int],
        cells: Iterable[Cell],
        least: int,
        config: str | None = None,
    ) -> None:
        for cell in cells:
            if have.get(cell, 0) < least:
                raise SuiteError(
                    f"{self._place(dataset, split, config)}: {_words(dataset, cell)} has "
                    f"{have.get(cell, 0)} rows, {least} are needed; lower the suite's train and "
                    "test sizes, or bring more rows with --data FOLDER"
                )

    def _collect(
        self, dataset: str, config: str | None, need: Need, rows: Iterable[Row]
    ) -> list[Row]:
        """The rows that are needed, in their order, with whatever else comes between them."""
        schema = SCHEMAS[dataset]
        cells = schema.cells(need.classes if schema.label else (_language(config),))
        least = need.train + need.test
        have = dict.fromkeys(cells, 0)
        kept = []
        for i, row in enumerate(rows):
            if i == 0:
                self._check_columns(dataset, "train", row)
            cell = schema.cell_of(row, config)
            if cell not in have:
                continue
            text = schema.text_of(row, config)
            if not isinstance(text, str):
                raise SuiteError(
                    f"{self._place(dataset, 'train', config)}: row {i} has no text in column "
                    f"{schema.text!r}" + ("" if schema.label else f" for {cell[0]!r}")
                )
            if len(text) <= schema.longer_than:
                continue
            kept.append(row)
            have[cell] += 1
            if have[cell] > least and min(have.values()) > least:
                return kept
        self._check_cells(dataset, "train", have, cells, least, config)
        return kept


def _words(dataset: str, cell: Cell) -> str:
    """`(25, 1)` -> `"profession 'surgeon', gender 'female'"`."""
    from sae_bench.sae_bench_utils.dataset_info import dataset_metadata

    schema = SCHEMAS[dataset]
    parts = []
    for i, (column, value) in enumerate(
        zip(schema.columns[1:] or ("language",), cell, strict=True)
    ):
        names = dataset_metadata.get(dataset, {}).get(f"column{i + 1}_mapping", {})
        parts.append(f"{column} {next((n for n, v in names.items() if v == value), value)!r}")
    return ", ".join(parts)


def _iterable(documents: Any, **arguments: Any) -> IterableDataset:
    """A dataset that calls a generator of texts anew whenever it is read from the start."""
    from datasets import Features, IterableDataset, Value

    dataset: IterableDataset = IterableDataset.from_generator(
        documents, features=Features({"text": Value("string")}), gen_kwargs=arguments
    )
    return dataset


# --- the embedded world ---------------------------------------------------------------------------

ENDLESS = sys.maxsize
DRAWS_PER_ROW = 20
"""A cell that is not full after so many rows drawn for each one needed never will be."""


class WorldData(Data):
    """The embedded world's held-out split, which neither its model nor its SAEs were trained on.

    All texts are different from each other, those of the test split from those of the train split
    too; every process draws the same ones. The open text never ends.
    """

    name = "world"

    def _splits(self, dataset: str, need: Need) -> Mapping[str, Dataset]:
        return _world_splits(dataset, need)

    def _rows(self, dataset: str, config: str | None, need: Need) -> list[Row]:
        return list(_world_rows(dataset, config, need))

    def text(self, dataset: str, skip_documents: int, seed: int) -> IterableDataset:
        """The world's mix of all genres; every seed gives other documents."""
        return _iterable(_world_documents, skip=skip_documents, seed=seed)

    def fingerprint(self, dataset: str, config: str | None = None) -> str:
        """A hash of the generators and their data."""
        return _world_fingerprint()


@lru_cache(maxsize=16)
def _world_rows(dataset: str, config: str | None, need: Need) -> list[Row]:
    schema = SCHEMAS[dataset]
    n_cells = len(schema.cells(need.classes if schema.label else (None,)))
    draws = DRAWS_PER_ROW * (1 + need.train + need.test) * n_cells
    drawn = islice(_world_generator(dataset, config, need.classes), draws)
    return WorldData()._collect(dataset, config, need, _unique(drawn, schema, config))


def _unique(rows: Iterable[Row], schema: Schema, config: str | None) -> Iterator[Row]:
    seen = set()
    for row in rows:
        text = schema.text_of(row, config)
        if text not in seen:
            seen.add(text)
            yield row


@lru_cache(maxsize=16)
def _world_splits(dataset: str, need: Need) -> Mapping[str, Dataset]:
    from datasets import Dataset

    splits: dict[str, list[Row]] = {"train": [], "test": []}
    seen: Counter[Cell] = Counter()
    for row in _world_rows(dataset, None, need):
        cell = SCHEMAS[dataset].cell_of(row, None)
        seen[cell] += 1
        if seen[cell] <= need.test + need.train:
            splits["test" if seen[cell] <= need.test else "train"].append(row)
    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _world_generator(dataset: str, config: str | None, classes: tuple[Any, ...]) -> Iterator[Row]:
    """The held-out stand-in of a dataset; classes that the world lacks are left out."""
    from sae_plugins.world import text

    if dataset == "LabHC/bias_in_bios":
        professions = [c for c in classes if c in text.PROFESSION_ID.values()]
        return text.biographies("heldout", ENDLESS if professions else 0, professions=professions)
    if dataset == "canrager/amazon_reviews_mcauley_1and5":
        categories = [c for c in classes if c in text.CATEGORY_ID.values()]
        return text.reviews("heldout", ENDLESS if categories else 0, categories=categories)
    if dataset == "fancyzhx/ag_news":
        return text.news("heldout", ENDLESS)
    if dataset == "codeparrot/github-code":
        return text.code("heldout", ENDLESS)
    return text.europarl(config or "", "heldout", ENDLESS)


def _world_documents(skip: int, seed: int) -> Iterator[Row]:
    from sae_plugins.world import text

    def mixes() -> Iterator[Row]:
        rng = Random(seed)
        while True:
            for _, document in text.mix("heldout", sum(text.GENRES.values()), rng.getrandbits(48)):
                yield {"text": document}

    return islice(mixes(), skip, None)


@lru_cache(maxsize=1)
def _world_fingerprint() -> str:
    from sae_plugins.world import lexicon, text

    sources = [Path(text.__file__), Path(lexicon.__file__)]
    return _digest([*sources, text.DATA / "words.txt", text.DATA / "prose.txt.gz"])


# --- files, here or on the Hub --------------------------------------------------------------------

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

    def _rows(self, dataset: str, config: str | None, need: Need) -> list[Row]:
        with self._reading(dataset):
            rows = iter(self._open(dataset, config, "train", True))
            if dataset == "codeparrot/github-code":
                rows = map(_as_its_script_would, rows)
            return self._collect(dataset, config, need, rows)

    def text(self, dataset: str, skip_documents: int, seed: int) -> IterableDataset:
        """The documents in their order, shuffled within `SHUFFLED_TOGETHER` of them."""
        with self._reading(dataset):
            row: Row = next(iter(self._open(dataset, None, "train", True)), {})
        if not isinstance(row.get("text"), str):
            raise SuiteError(
                f"{self._place(dataset, 'train')}: no text in a column 'text'; "
                f"there are the columns {', '.join(row) or 'of no rows'}"
            )
        return _iterable(self._documents, dataset=dataset, skip=skip_documents, seed=seed)

    def _documents(self, dataset: str, skip: int, seed: int) -> Iterator[Row]:
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


def _as_its_script_would(row: Row) -> Row:
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
        with self._reading(dataset):
            self._listing(dataset)
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
        if not chosen:
            raise self._missing(dataset, "train.parquet, .jsonl or .csv")
        return _digest([Path(root, path) for path in sorted(chosen)], Path(root))

    def _listing(self, dataset: str) -> tuple[str, list[str]]:
        root = (self.folder / dataset).resolve()
        paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        # `datasets` leaves its own caches beside arrow files; hidden folders are the Hub's
        kept = [p for p in paths if not p.name.startswith("cache-") and p.parts[0][0] != "."]
        return f"{root}{os.sep}", [path.as_posix() for path in kept]

    def _missing(self, dataset: str, expected: str) -> SuiteError:
        schema = SCHEMAS.get(dataset)
        columns = ", ".join(schema.columns) if schema else "text"
        return SuiteError(
            f"{self.folder / dataset}: no {expected}; it should hold dataset {dataset} "
            f"with the columns {columns}"
        )

    def _unreadable(self, dataset: str) -> str:
        return f"{self.folder / dataset} cannot be read"


def _digest(files: Iterable[Path], root: Path | None = None) -> str:
    digest = xxhash.xxh3_128()
    for file in files:
        status = file.stat()
        name = file.relative_to(root).as_posix() if root else file.name
        digest.update(f"{name}\0{_digest_of(file, status.st_size, status.st_mtime_ns)}\0".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _digest_of(file: Path, size: int, mtime_ns: int) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- which one ------------------------------------------------------------------------------------


def data_source(
    name: str | None, model_name: str, revisions: Mapping[str, str] | None = None
) -> Data:
    """What `--data` names.

    Args:
        name: `"world"`, `"hub"` or a folder; None is the world for its own model, or else the Hub.
        model_name: of the language model.
        revisions: commits to read on the Hub, by the dataset's name; the newest of the others.

    Raises:
        SuiteError: it is none of these.
    """
    from sae_plugins import world

    if name is None:
        name = "world" if model_name == world.NAME else "hub"
    if name == "world":
        return WorldData()
    if name == "hub":
        return HubData(revisions)
    if not Path(name).is_dir():
        raise SuiteError(f"--data {name}: neither 'world' nor 'hub' nor a folder")
    return FolderData(Path(name))
