"""The documents of a dataset, as SAELens reads them: row after row, in each epoch again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import xxhash

from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import ranks
from sae_plugins.resume.shards import split
from sae_plugins.runs.texts.columns import TOKENS, Column, read_rows

logger = logging.getLogger(__name__)

_NUMBER = "__row__"
"""The column of the rows' numbers."""
_AT_ONCE = 10_000
"""Rows that are looked at together."""


def numbered(rows: Any, column: Column) -> Any:
    """The rows with their numbers, by which they can be named when they are shuffled."""
    if isinstance(rows, datasets.Dataset):
        # the other columns may be pictures, which take long to read
        return rows.select_columns([column.name]).add_column(_NUMBER, np.arange(len(rows)))
    return rows.map(lambda _, number: {_NUMBER: number}, with_indices=True)


def look_through(rows: datasets.Dataset, column: Column, place: str) -> None:
    """Say how many rows are without text, and refuse those that SAELens would break on.

    Raises:
        PluginError: a row of tokens is too short, or no row has text.
    """
    before = empty = 0
    for batch in rows.select_columns([column.name]).with_format("arrow").iter(_AT_ONCE):
        values = batch.column(column.name)
        lengths = _lengths(values)
        if lengths is None:
            return  # they are of a wrong type, which shows in the first one
        empty += int((lengths == 0).sum())
        short = np.flatnonzero((lengths > 0) & (lengths < column.length))
        if column.kind == TOKENS and len(short):
            number = int(short[0])
            column.document(values[number].as_py(), f"{place}, row {before + number + 1}")
        before += len(values)
    if empty == before:
        raise PluginError(_no_text(place, before, column))
    if empty:
        logger.warning(
            "%s: %s of its %s rows have no text in the column %r, and are skipped",
            *(place, f"{empty:,}", f"{before:,}", column.name),
        )


def _lengths(values: Any) -> Any:
    """Of texts or lists; 0 for none, and None where they are neither."""
    import pyarrow as pa
    from pyarrow import compute

    kind = values.type
    if pa.types.is_null(kind):
        return np.zeros(len(values), int)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = compute.binary_length(values)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        found = compute.list_value_length(values)
    else:
        return None
    return compute.fill_null(found, 0).to_numpy()


def _no_text(place: str, rows: int, column: Column) -> str:
    return f"{place}: none of its {rows:,} rows has text in the column {column.name!r}"


class Documents:
    """The rows of a dataset, each with the one column that SAELens looks for.

    Rows without text are skipped and counted, and so are none of those that are held out.

    Attributes:
        place: the dataset, in words.
        where: the row that was read last, in words.
        rows_read: how many rows the longest pass has read.
        skipped: how many of them are without text.
    """

    def __init__(
        self, rows: Any, column: Column, place: str, held_out: frozenset[bytes] = frozenset()
    ) -> None:
        """Read nothing yet.

        Args:
            rows: `numbered`.
            column: the one to read.
            place: the dataset, in words.
            held_out: the digests of documents to leave out.
        """
        self.place = self.where = place
        self.rows_read = self.skipped = 0
        self._rows, self._column, self._held_out = rows, column, held_out
        self._parts: dict[int, Documents] = {}
        self._is_told = isinstance(rows, datasets.Dataset)  # which was looked through
        self._order = "" if getattr(rows, "n_shards", 1) == 1 else ", in the order of its files"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass.

        Raises:
            PluginError: a row cannot be read, or no row has text.
        """
        read = skipped = given = 0
        for row in read_rows(self._rows, self.place):
            self.where = f"{self.place}, row {row[_NUMBER] + 1}{self._order}"
            read += 1
            document = self._column.document(row.get(self._column.name), self.where)
            skipped += document is None
            self.rows_read, self.skipped = max(read, self.rows_read), max(skipped, self.skipped)
            if document is None or (self._held_out and digest(document) in self._held_out):
                continue
            given += 1
            yield {self._column.kind: document}
        self.tell_skipped()
        if not given:
            raise PluginError(self._nothing(read, skipped))

    def part(self, k: int, count: int) -> Documents:
        """Shard `k` of the documents, of which the whole tells what was skipped."""
        place = f"{self.place}, data shard {k + 1} of {count}"
        rows = split(self._rows, k, count)
        part = Documents(rows, self._column, place, self._held_out)
        part._is_told = True
        self._parts[k] = part
        return part

    def _nothing(self, read: int, skipped: int) -> str:
        if skipped == read:
            return _no_text(self.place, read, self._column)
        return (
            f"{self.place}: all of its {read - skipped:,} documents are held out, so that none is "
            "left to train on; give more of them, or --heldout_tokens 0, which scores nothing"
        )

    def tell_skipped(self) -> None:
        """Say once how many rows are without text, if any are; of shards, all ranks ask it."""
        if self._is_told:
            return
        found = [(self.skipped, self.rows_read)]
        if self._parts:
            own = [(part.skipped, part.rows_read) for part in self._parts.values()]
            found = [pair for pairs in ranks().all(own, patiently=True) for pair in pairs]
            self._is_told = True  # whatever there is, since rank 0 alone asks again
        skipped, read = map(sum, zip(*found, strict=True))
        if skipped:
            self._is_told = True
            tell = logger.warning if ranks().writes else logger.debug
            tell(
                "%s: %s of the %s rows read have no text in the column %r, and were skipped",
                *(self.place, f"{skipped:,}", f"{read:,}", self._column.name),
            )


def digest(document: Any) -> bytes:
    """A hash of a document."""
    text = document if isinstance(document, str) else repr(document)
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
