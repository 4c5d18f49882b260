"""Data that remembers which datasets were read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Watched:
    """Data that remembers which datasets were read, with their fingerprints."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.used: dict[str, str] = {}

    def fingerprint(self, dataset: str, config: str | None = None) -> str:
        name = f"{dataset}#{config}" if config else dataset
        self.used[name] = version_of(self._data, name)
        return self.used[name]

    def load(self, dataset: str, config: str | None, need: Any) -> Any:
        loaded = self._data.load(dataset, config, need)
        self.fingerprint(dataset, config)
        return loaded

    def file(self, dataset: str, name: str) -> str:
        text: str = self._data.file(dataset, name)
        self.fingerprint(dataset)
        return text

    def path(self, dataset: str, name: str) -> Path:
        path: Path = self._data.path(dataset, name)
        self.fingerprint(dataset)
        return path

    def table(self, dataset: str, config: str) -> Any:
        rows = self._data.table(dataset, config)
        self.fingerprint(dataset, config)
        return rows

    def text(self, dataset: str, skip_documents: int, seed: int) -> Any:
        text = self._data.text(dataset, skip_documents, seed)
        self.fingerprint(dataset)
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def version_of(data: Any, name: str) -> str:
    """Which version of a dataset this is, by the name that `Watched.used` has for it."""
    dataset, _, config = name.partition("#")
    return str(data.fingerprint(dataset, config or None))
