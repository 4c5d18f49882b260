"""The output folder of an evaluation: its results, its tables, and the manifest of its rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.files import lock, write
from sae_plugins.base.shown_paths import without_places
from sae_plugins.eval_suites.evaluation.manifest import MANIFEST, PARTS, Manifest, Row
from sae_plugins.eval_suites.evaluation.results import Result, read_result
from sae_plugins.eval_suites.evaluation.tables import details_table, results_table

RESULTS_TABLE, DETAILS_TABLE, FIGURES = "results.csv", "details.csv", "figures"


class Folder:
    """What is in the folder, of all evaluations into it, and how it is written."""

    def __init__(self, path: Path, part: str = "") -> None:
        """Read the manifest; nothing is written.

        Args:
            path: the folder.
            part: a name of its own for one of several evaluations that write into it at once.

        Raises:
            SaePluginsError: the manifest is damaged.
        """
        self.path, self._part = path, part
        self.manifest = Manifest.read(path)
        self._previous: list[Row] = []
        self._rows: list[Row] = []
        self._results: dict[str, Result] = {}

    def results(self, rows: Iterable[Row]) -> list[tuple[Row, Result]]:
        """The rows that are ok, each with its result; one whose file is gone is left out."""
        found = ((row, self.result(row.file)) for row in rows if row.status == "ok")
        return [(row, result) for row, result in found if result is not None]

    def result(self, file: str | None) -> Result | None:
        """The result in a file, or None if there is none that can be read."""
        if file is not None and file not in self._results:
            if (found := read_result(self.path / file)) is None:
                return None
            self._results[file] = found
        return None if file is None else self._results[file]

    @contextmanager
    def locked(self, rows: list[Row]) -> Iterator[None]:
        """Keep other evaluations out, and have the manifest list these rows.

        Raises:
            SaePluginsError: another evaluation writes into the folder, or it takes no more files.
        """
        self._rows = rows
        own = self.path / PARTS / self._part if self._part else self.path
        with self._writing("the folder"):
            own.mkdir(parents=True, exist_ok=True)
        busy = f"{own}: another evaluation is writing into it; wait, or choose another folder"
        with lock(own, SaePluginsError(busy)):
            self.manifest = Manifest.read(self.path)  # which may have changed before the lock
            self._previous = list(self.manifest.rows)
            if self._part:
                self.manifest.rows = []
            self.manifest.add(rows)
            self.save()
            yield

    def merge(self) -> None:
        """Put the rows of all parts into the one manifest, and its tables, and remove the parts."""
        with self.locked([]):
            shutil.rmtree(self.path / PARTS, ignore_errors=True)

    def keep(self, row: Row, file: str, result: Result, raw: str | None) -> None:
        """Write a row's result to a file, SAEBench's own JSON beside it, and the tables."""
        if result.raw is not None and raw is not None:
            self.write(Path(file).with_name(result.raw), raw)
        self.write(Path(file), result.model_dump_json(indent=1) + "\n")
        row.file = file
        self._results[file] = result
        self._remove_stale(row)
        self.save()

    def _remove_stale(self, row: Row) -> None:
        """Remove what an earlier run left of the row, if that was no result."""
        previous = next((old for old in self._previous if row.replaces(old)), None)
        if previous is None or previous.file is None or previous.status == "ok":
            return
        stale = [f"{previous.file.removesuffix('.json')}.error.txt"]
        if previous.file != row.file:
            stale.append(previous.file)
        for file in stale:
            (self.path / file).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the manifest, and the tables of all its rows; a part has none."""
        self.save_manifest()
        if self._part:
            return
        results = self.results(self.manifest.rows)
        self.write(Path(RESULTS_TABLE), results_table(results))
        self.write(Path(DETAILS_TABLE), details_table(results))

    def save_manifest(self) -> None:
        """Write the manifest alone."""
        place = Path(PARTS, self._part) if self._part else Path()
        self.write(place / MANIFEST, self.manifest.model_dump_json(indent=1) + "\n")

    def write(self, file: Path, text: str) -> None:
        """Write a file, by its path in the folder; it names no folders of this machine.

        Raises:
            SaePluginsError: that fails; it says what is kept.
        """
        path = self.path / file
        with self._writing(str(file)):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = self._part and f".{self._part}"  # two arms may be one SAE, with one result
            write(path, without_places(text, path.suffix), writer=writer)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            done = sum(row.status == "ok" and row.file is not None for row in self._rows)
            kept = f"the {done} finished rows are kept there, and " if done else ""
            raise SaePluginsError(
                f"{self.path}: {what} could not be written: {error.strerror or error}; {kept}"
                "the same command goes on when there is room"
            ) from error
