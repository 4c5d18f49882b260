"""What is said where documents end before a run does, or cannot be made prompts."""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets_of_people import CONTEXT, Words, settings, write_rows

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.texts.reading import watch
from sae_plugins.runs.texts.splits import load_text


class Store:
    """What `watch` needs of SAELens' store: prompts of the documents' words, run together."""

    training_context_size = CONTEXT

    def __init__(self, documents: Any) -> None:
        self.documents = documents
        self.iterable_sequences = self._iterate_tokenized_sequences()

    def _iterate_tokenized_sequences(self) -> Generator[Any, None, None]:
        words: list[str] = []
        for row in self.documents:
            if "\0" in row["text"]:
                raise TypeError("TextEncodeInput must be a text")
            words += row["text"].split()
            while len(words) >= CONTEXT:
                del words[:CONTEXT]
                yield torch.zeros(CONTEXT)


def watched(rows: list[str], **more: Any) -> Store:
    documents = load_text(
        settings(write_rows({"text": row} for row in rows), heldout=0), Words()
    ).train
    store = Store(documents)
    config = {
        "context_size": CONTEXT, "training_tokens": 100, "n_batches_in_buffer": 2,
        "disable_concat_sequences": False, "n_batches_for_norm_estimate": 3,
        "train_batch_size_tokens": 8, "sae": SimpleNamespace(normalize_activations="none"), **more,
    }  # fmt: skip
    watch(store, documents, SimpleNamespace(**config))  # type: ignore[arg-type]
    return store


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("how", "needed"),
    [
        ("none", "up to 108 (100 to train on, 8 that wait in the buffer)"),
        ("expected_average_only_in",
         "up to 132 (100 to train on, 24 to estimate norms, 8 that wait in the buffer)"),
    ],
)  # fmt: skip
def test_what_the_data_gave_and_what_the_run_needs_is_said_once(
    how: str, needed: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = watched(["a b c d e"] * 5, sae=SimpleNamespace(normalize_activations=how))
    with caplog.at_level(logging.WARNING):
        assert len(list(store.iterable_sequences)) == 6
        assert len(list(store._iterate_tokenized_sequences())) == 6
    (record,) = caplog.records
    assert record.getMessage() == (
        f"--dataset_path data.jsonl ends after 24 tokens (6 prompts), and the run needs {needed}, "
        "so that it is trained on the same text again; give more text, or lower --training_tokens"
    )


def test_text_that_is_less_than_a_prompt_is_refused() -> None:
    with pytest.raises(PluginError, match=r"data.jsonl gives not one prompt: all documents togeth"):
        next(watched(["a b c"]).iterable_sequences)
    alone = watched(["a b c"], disable_concat_sequences=True)
    with pytest.raises(PluginError, match="gives not one prompt: no document has --context_size 4"):
        next(alone.iterable_sequences)


def test_a_document_that_the_tokenizer_cannot_read_is_named_by_its_row() -> None:
    store = watched(["a", "b \0"])
    with pytest.raises(
        PluginError, match=r"data.jsonl, row 2: the tokenizer cannot read it .TypeError: TextEnc"
    ):
        list(store.iterable_sequences)
