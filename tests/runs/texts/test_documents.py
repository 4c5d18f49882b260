"""Rows without text: skipped and counted, and said once."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets_of_people import Words, settings, write_rows

from sae_plugins.base.errors import PluginError
from sae_plugins.base.ranks import join
from sae_plugins.framework.forked import on_ranks
from sae_plugins.resume.division import own_shards
from sae_plugins.runs.texts import documents as module
from sae_plugins.runs.texts.splits import load_text

BOTH = pytest.mark.parametrize("streaming", [True, False])
DOCUMENTS = {"text": [f"document number {i}" for i in range(12)],
             "tokens": [[i, 1, 2, 3] for i in range(12)]}  # fmt: skip
EMPTY: dict[str, list[Any]] = {
    "text": [{"text": None}, {"text": ""}, {"other": 1}],
    "tokens": [{"tokens": None}, {"tokens": []}, {"other": 1}],
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@BOTH
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_rows_without_text_are_skipped_and_counted_once(
    kind: str, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{kind: document} for document in DOCUMENTS[kind]]
    rows = [rows[0], *EMPTY[kind], *rows[1:6], *EMPTY[kind], *rows[6:]]
    text = load_text(settings(write_rows(rows), heldout=1, streaming=streaming), Words())
    held = [row[kind] for row in text.heldout]
    assert held == DOCUMENTS[kind][:2]  # among which there were some
    for _ in range(2):
        trained = [row[kind] for row in text.train]
        assert sorted(trained) == sorted(DOCUMENTS[kind][2:])
    text.train.tell_skipped()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("--dataset_path data.jsonl: 6 of ")
    many = "18 rows read" if streaming else "its 18 rows"
    assert f"the {many}" in said.replace("of its", "of the its").replace("the the", "the")
    assert f"have no text in the column '{kind}', and " in said


@BOTH
@pytest.mark.parametrize("heldout", [0, 12])
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_a_dataset_without_any_text_is_refused(kind: str, heldout: int, streaming: bool) -> None:
    rows = [{kind: None}, *EMPTY[kind], {kind: None}]
    with pytest.raises(
        PluginError,
        match=f"data.jsonl: none of its 5 rows has text in the column '{kind}'",
    ):
        list(
            load_text(
                settings(write_rows(rows), heldout=heldout, streaming=streaming), Words()
            ).train
        )


def test_whitespace_is_text_since_the_model_reads_it() -> None:
    write_rows([{"text": "  "}, {"text": "\n"}, {"text": "a"}])
    text = load_text(settings("data.jsonl", heldout=0), Words())
    assert sorted(row["text"] for row in text.train) == ["\n", "  ", "a"]


def test_what_was_skipped_is_said_when_training_ends_in_the_midst_of_a_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_rows([*EMPTY["text"], *({"text": document} for document in DOCUMENTS["text"])] * 9)
    train = load_text(settings("data.jsonl", heldout=0), Words()).train
    rows = iter(train)
    for _ in range(40):
        next(rows)
    assert not caplog.records
    for _ in range(2):
        train.tell_skipped()
    (record,) = caplog.records
    skipped, read = train.skipped, train.rows_read
    assert read == 40 + skipped < 135
    assert f"{skipped} of the {read} rows read have no text" in record.getMessage()


@pytest.mark.parametrize("size", [1, 2])
def test_what_shards_skip_is_said_once_of_all_ranks(size: int) -> None:
    rows = [*EMPTY["text"], *({"text": document} for document in DOCUMENTS["text"])] * 8
    for number in range(4):
        write_rows(rows[number::4], f"data/part{number}.jsonl")

    def act() -> tuple[int, int, list[str]]:
        here, said = join(30), list[str]()
        module.logger.warning = lambda text, *values: said.append(text % values)
        train = load_text(settings("data", heldout=0, streaming=True), Words()).train
        parts = [train.part(k, 4) for k in own_shards(4, here)]
        for part in parts:
            [*islice(part, 15)]
        counts = sum(part.skipped for part in parts), sum(part.rows_read for part in parts)
        for _ in range(2):
            train.tell_skipped()
        [*parts[0]]  # a pass that comes to its end
        return *counts, said

    found = on_ranks(size, act)
    skipped, read = (sum(counts) for counts in list(zip(*found, strict=True))[:2])
    (sentence,) = found[0][2]
    assert sentence == (
        f"--dataset_path data: {skipped} of the {read} rows read have no text in the column "
        "'text', and were skipped"
    )
    assert [said for *_, said in found[1:]] == [[]] * (size - 1)


def test_an_empty_file_of_rows_is_refused() -> None:
    Path("data.jsonl").write_text("\n")
    with pytest.raises(PluginError, match=r"--dataset_path data.jsonl"):
        load_text(settings("data.jsonl"), Words())
