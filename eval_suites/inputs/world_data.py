"""The data of the embedded world, whose generators stand in for the datasets of the Hub."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.data import (
    OPEN_TEXT,
    PILE,
    SCHEMAS,
    Data,
    Need,
    Record,
    Schema,
    Stratum,
    digest,
    iterable,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

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

    def _rows(self, dataset: str, config: str | None, need: Need) -> list[Record]:
        return list(_world_rows(dataset, config, need))

    def lack_of_text(self, dataset: str) -> str | None:
        """The one text stands in for those that are usual, and for no other."""
        if dataset in (OPEN_TEXT, PILE):
            return None
        return (
            f"there is no open text {dataset!r} in the embedded world, which has its own in place "
            f"of {OPEN_TEXT}; leave the name out, or choose other data: --data hub, or a folder"
        )

    def lack_of_file(self, dataset: str, name: str) -> str:
        """Its language model knows how words begin, and no facts about anything."""
        return (
            f"needs {dataset}, for which the embedded world has no stand-in: bring it with --data "
            f"FOLDER, as FOLDER/{dataset}/{name}, and a language model that knows the answers"
        )

    def lack_of_table(self, dataset: str, config: str) -> str:
        """It knows no answers to questions either."""
        return self.lack_of_file(dataset, f"{config}/test.parquet")

    def path(self, dataset: str, name: str) -> Path:
        """There is none.

        Raises:
            SuiteError: always.
        """
        raise SuiteError(self.lack_of_file(dataset, name))

    def _table(self, dataset: str, config: str) -> Dataset:
        raise SuiteError(self.lack_of_table(dataset, config))

    def text(self, dataset: str, skip_documents: int, seed: int) -> IterableDataset:
        """The world's mix of all genres; every seed gives other documents."""
        return iterable(_world_documents, skip=skip_documents, seed=seed)

    def fingerprint(self, dataset: str, config: str | None = None) -> str:
        """A hash of the generators and their data."""
        return _world_fingerprint()


@lru_cache(maxsize=16)
def _world_rows(dataset: str, config: str | None, need: Need) -> list[Record]:
    schema = SCHEMAS[dataset]
    n_cells = len(schema.cells(need.classes if schema.label else (None,)))
    draws = DRAWS_PER_ROW * (1 + need.train + need.test) * n_cells
    drawn = islice(_world_generator(dataset, config, need.classes), draws)
    return WorldData().collect(dataset, config, need, _unique(drawn, schema, config))


def _unique(rows: Iterable[Record], schema: Schema, config: str | None) -> Iterator[Record]:
    seen = set()
    for row in rows:
        text = schema.text_of(row, config)
        if text not in seen:
            seen.add(text)
            yield row


@lru_cache(maxsize=16)
def _world_splits(dataset: str, need: Need) -> Mapping[str, Dataset]:
    from datasets import Dataset

    splits: dict[str, list[Record]] = {"train": [], "test": []}
    seen: Counter[Stratum] = Counter()
    for row in _world_rows(dataset, None, need):
        cell = SCHEMAS[dataset].cell_of(row, None)
        seen[cell] += 1
        if seen[cell] <= need.test + need.train:
            splits["test" if seen[cell] <= need.test else "train"].append(row)
    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _world_generator(
    dataset: str, config: str | None, classes: tuple[Any, ...]
) -> Iterator[Record]:
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


def _world_documents(skip: int, seed: int) -> Iterator[Record]:
    from sae_plugins.world import text

    def mixes() -> Iterator[Record]:
        rng = Random(seed)
        while True:
            for _, document in text.mix("heldout", sum(text.GENRES.values()), rng.getrandbits(48)):
                yield {"text": document}

    return islice(mixes(), skip, None)


@lru_cache(maxsize=1)
def _world_fingerprint() -> str:
    from sae_plugins.world import lexicon, text

    sources = [Path(text.__file__), Path(lexicon.__file__)]
    return digest([*sources, text.DATA / "words.txt", text.DATA / "prose.txt.gz"])
