"""The data that suites read, wherever it comes from: which columns, and how many rows of what.

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

and of some, files by their names, or tables as they are: adamkarvonen/ravel_prompts, and what
`unlearning` reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.fingerprints import Remembered, hash_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Record = Mapping[str, Any]
Stratum = tuple[Any, ...]


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

    def cells(self, classes: Iterable[Any]) -> list[Stratum]:
        """All cells of these classes."""
        return list(product(classes, self.values) if self.attribute else product(classes))

    def cell_of(self, row: Record, config: str | None) -> Stratum:
        """The cell of a row."""
        if self.label is None:
            return (_language(config),)
        return tuple(row[column] for column in self.columns[1:])

    def text_of(self, row: Record, config: str | None) -> Any:
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


OPEN_TEXT = "Skylion007/openwebtext"
"""What SAEBench's scripts evaluate on."""
PILE = "monology/pile-uncopyrighted"
"""The open text of its autointerp."""
RAVEL = "adamkarvonen/ravel_prompts"
"""Entities, what is asked about them, and the answers, in JSON files."""
CORPORA = "cais/wmdp-corpora"
"""Texts about what a language model shall forget, in JSON lines."""
OF_FILES = (RAVEL, CORPORA)
"""Datasets that are no tables, but files."""
ON_REQUEST: Mapping[str, str] = {
    CORPORA: "https://docs.google.com/forms/d/e/"
    "1FAIpQLSdnQc8Qn0ozSDu3VE8HLoHPvhpukX1t1dIwE5K5rJw9lnOjKw/viewform"
}
"""Where the authors of those can be asked for them whose files are not on the Hub."""
WMDP, MMLU, WIKITEXT = "cais/wmdp", "cais/mmlu", "Salesforce/wikitext"
_QUESTION = ("question", "choices", "answer")
TABLES: Mapping[str, tuple[str, ...]] = {WMDP: _QUESTION, MMLU: _QUESTION, WIKITEXT: ("text",)}
"""Datasets whose test split is read as it is, with its columns."""


def _language(config: str | None) -> str:
    """`"fr"` of `"fr-it"`: SAEBench always wants the first."""
    return (config or "").partition("-")[0]


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

    def lack_of_text(self, dataset: str) -> str | None:
        """Why there can be no open text of this name, or None if there may be."""
        return None

    def lack_of_file(self, dataset: str, name: str) -> str | None:
        """Why there can be no such file of a dataset of `OF_FILES`, with the cure, or None."""
        return None

    def lack_of_table(self, dataset: str, config: str) -> str | None:
        """Why there can be no such configuration of a dataset of `TABLES`, with the cure, or None.

        What is missing on the Hub is found out when it is read.
        """
        return None

    @abstractmethod
    def path(self, dataset: str, name: str) -> Path:
        """Where a file of a dataset of `OF_FILES` lies.

        Raises:
            SuiteError: it cannot be had.
        """

    def file(self, dataset: str, name: str) -> str:
        """The text of a file of a dataset of `OF_FILES`.

        Raises:
            SuiteError: it cannot be had.
        """
        return self.path(dataset, name).read_text("utf-8")

    def table(self, dataset: str, config: str) -> Dataset:
        """The test split of a configuration of a dataset of `TABLES`, as it is.

        Raises:
            SuiteError: it cannot be had, or a column is missing.
        """
        rows = self._table(dataset, config)
        self._check_columns(dataset, "test", rows.column_names)
        return rows

    @abstractmethod
    def _table(self, dataset: str, config: str) -> Dataset:
        """The test split of a configuration."""

    @abstractmethod
    def text(self, dataset: str, skip_documents: int, seed: int) -> IterableDataset:
        """Open text, one document a row in the one column `text`.

        Args:
            dataset: its name.
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
    def _rows(self, dataset: str, config: str | None, need: Need) -> list[Record]:
        """The rows of a streamed dataset, as `collect` chooses them."""

    def _place(self, dataset: str, split: str, config: str | None = None) -> str:
        name = f"{dataset} ({config})" if config else dataset
        return f"{name} of {self.name!r}, split {split!r}"

    def _check_columns(self, dataset: str, split: str, columns: Iterable[str]) -> None:
        expected = TABLES[dataset] if dataset in TABLES else SCHEMAS[dataset].columns
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
        have: Mapping[Stratum, int],
        cells: Iterable[Stratum],
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

    def collect(
        self, dataset: str, config: str | None, need: Need, rows: Iterable[Record]
    ) -> list[Record]:
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


def _words(dataset: str, cell: Stratum) -> str:
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


def iterable(documents: Any, **arguments: Any) -> IterableDataset:
    """A dataset that calls a generator of texts whenever it is read from the start."""
    from datasets import Features, IterableDataset, Value

    dataset: IterableDataset = IterableDataset.from_generator(
        documents, features=Features({"text": Value("string")}), gen_kwargs=arguments
    )
    return dataset


def digest(files: Iterable[Path], root: Path | None = None) -> str:
    """A hash of the names and bytes of files."""
    files, digest = list(files), xxhash.xxh3_128()
    with Remembered("bytes", root or files[0].parent, hash_of) as hashes:
        for file in files:
            name = file.relative_to(root).as_posix() if root else file.name
            digest.update(f"{name}\0{hashes.of(file)}\0".encode())
    return digest.hexdigest()
