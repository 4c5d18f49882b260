"""The text of a run: what is trained on, what is held out, and whose tokens it holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from datasets_of_people import Words, settings

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.texts.splits import load_text


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def shards(count: int, documents: int, again: bool = False) -> None:
    """A folder of JSON files; with `again`, the first document stands at the end, too."""
    Path("data").mkdir()
    for shard in range(count):
        texts = [f"shard {shard} document {i}" for i in range(documents)]
        if again and shard == count - 1:
            texts.append("shard 0 document 0")
        lines = [json.dumps({"text": text}) for text in texts]
        Path("data", f"train-{shard:02}.jsonl").write_text("\n".join(lines))


def first_shards(seeds: range) -> list[str]:
    trained = (load_text(settings(seed=seed, streaming=True), Words()).train for seed in seeds)
    return [next(iter(rows))["text"].rpartition(" document")[0] for rows in trained]


def test_each_seed_begins_a_stream_with_shards_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_plugins.runs.texts.splits.SHUFFLE_BUFFER", 5)
    shards(8, documents=20)
    assert len(set(first_shards(range(6)))) > 2


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_text_is_both_held_out_and_trained_on(streaming: bool, seed: int) -> None:
    shards(3, documents=20, again=True)
    text = load_text(settings(seed=seed, streaming=streaming), Words())
    held = [row["text"] for row in text.heldout]
    trained = [row["text"] for row in text.train]
    assert held == [f"shard 0 document {i}" for i in range(4)]  # 12 tokens, and a batch of 4
    assert not {*held} & {*trained}
    assert len(trained) == len({*trained}) == 3 * 20 - 4
    assert trained == [row["text"] for row in text.train]  # in the next epoch, and when resumed


def test_nothing_is_left_out_where_nothing_is_held_out() -> None:
    shards(1, documents=3, again=True)
    text = load_text(settings(heldout=0), Words())
    assert text.heldout is None
    assert len([*text.train]) == 4


def tokens(path: str, **metadata: Any) -> None:
    rows = Dataset.from_dict({"input_ids": [[i, 1, 2, 3] for i in range(40)]})
    rows.set_format("torch", columns=["input_ids"])  # as SAELens' PretokenizeRunner leaves it
    rows.save_to_disk(path)
    if metadata:
        Path(path, "sae_lens.json").write_text(json.dumps(metadata))


def tokenizer(path: str, words: list[str]) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(words)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    )
    made.save_pretrained(path)
    return made


def test_tokens_of_another_tokenizer_are_refused() -> None:
    own, _ = tokenizer("own", ["a", "b"]), tokenizer("theirs", ["a", "c"])
    model: Any = SimpleNamespace(tokenizer=own)
    tokens("same", tokenizer_name="own")
    tokens("other", tokenizer_name="theirs")
    tokens("gone", tokenizer_name="nowhere")
    tokens("silent")
    for path in ("same", "gone", "silent"):
        assert load_text(settings(path), model).train is not None
    with pytest.raises(PluginError, match="--dataset_path other holds the tokens of theirs, and x"):
        load_text(settings("other"), model)


def test_a_dataset_on_the_hub_says_whose_its_tokens_are(monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = tokenizer("own", ["a", "b"]), tokenizer("theirs", ["a", "c"])
    tokens("downloaded", tokenizer_name="theirs")
    asked: list[Any] = []

    def download(*where: Any, **kind: Any) -> str:
        asked.append((*where, kind))
        return "downloaded/sae_lens.json"

    rows = Dataset.load_from_disk("downloaded").with_format(None)
    monkeypatch.setattr("sae_plugins.runs.texts.tokenized.hf_hub_download", download)
    monkeypatch.setattr("sae_plugins.runs.texts.splits.load_rows", lambda _: rows)
    with pytest.raises(PluginError, match="me/tokens holds the tokens of theirs"):
        load_text(settings("me/tokens"), SimpleNamespace(tokenizer=own))
    assert asked == [("me/tokens", "sae_lens.json", {"repo_type": "dataset"})]


@pytest.mark.parametrize(
    ("name", "value"), [("disable_concat_sequences", True), ("sequence_separator_token", None)]
)
def test_what_is_for_texts_is_refused_of_tokens(name: str, value: Any) -> None:
    tokens("data")
    with pytest.raises(
        PluginError, match=f"--{name} (true|none): --dataset_path data holds tokens"
    ):
        load_text(settings(**{name: value}), Words())
