"""Datasets as people have them, for tests: settings of a run on one, and a model of words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae_plugins.runs.setup import SAELensSettings

CONTEXT = 4


class Words:
    """A language model to which every word is a token."""

    tokenizer = object()

    def to_tokens(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(shape=(1, len(text.split())))


def settings(path: Any = "data", seed: int = 0, heldout: int = 12, **runner: Any) -> Any:
    runner = {"store_batch_size_prompts": 1, "context_size": CONTEXT, **runner}
    return SAELensSettings(
        "x", seed=seed, heldout_tokens=heldout, runner={"dataset_path": str(path), **runner}
    )


def write_rows(rows: Iterable[Any], path: str = "data.jsonl") -> Path:
    """A file of JSON lines."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
