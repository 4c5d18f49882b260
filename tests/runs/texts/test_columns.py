"""Which column is read, and which rows are refused: each case in memory and as a stream."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets_of_people import Words, settings, write_rows

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.texts.splits import TextSplits, load_text

BOTH = pytest.mark.parametrize("streaming", [True, False])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class Chats(Words):
    """A model whose chat template makes a token of each word and of each role."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(apply_chat_template=self.apply)

    def apply(self, messages: Any, **_: Any) -> Any:
        assert all({*message} == {"role", "content"} for message in messages)
        return [[word for m in messages for word in (m["role"], *m["content"].split())]]


def load(rows: list[Any], model: Any = None, **flags: Any) -> TextSplits:
    return load_text(settings(write_rows(rows), **flags), model or Words())


def refused(rows: list[Any], model: Any = None, **flags: Any) -> str:
    with pytest.raises(PluginError) as error:
        list(load(rows, model, **{"heldout": 0, **flags}).train)
    return str(error.value)


TOKENS = [[i, 1, 2, 3] for i in range(8)]


@BOTH
@pytest.mark.parametrize("heldout", [0, 4])
def test_a_row_of_tokens_that_is_too_short_is_refused_by_its_number(
    streaming: bool, heldout: int
) -> None:
    rows = [{"tokens": row} for row in (*TOKENS, [1, 2, 3], *TOKENS)]
    assert (
        "data.jsonl, row 9 has 3 tokens, and a prompt has 4: rows of tokens are read as they are, "
        "one prompt each; give --context_size 3 or less, leave shorter rows out, or join them"
    ) in refused(rows, streaming=streaming, heldout=heldout)


@BOTH
def test_longer_rows_of_tokens_are_read_to_the_length_of_a_prompt(
    streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"input_ids": [*row, 9, 9]} for row in TOKENS]
    text = load(rows, heldout=0, streaming=streaming)
    assert sorted(row["tokens"][0] for row in text.train) == [*range(8)]
    assert ("has rows of up to 6 tokens" in caplog.text) is not streaming
    held = load(rows, heldout=4, streaming=streaming).heldout
    assert len(held) == 2  # prompts of 4 tokens: 4 to score, and a batch


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.5, "list [1.5, 1.5, 1.5, 1.5]"), ([1], "list [[1], [1], [1], [1]]"),
     ("a", "list ['a', 'a', 'a', 'a']"), (True, "list [True, True, True, True]")],
)  # fmt: skip
@BOTH
def test_tokens_are_whole_numbers(streaming: bool, value: Any, shown: str) -> None:
    rows = [{"tokens": None}, {"tokens": [value] * 4}]
    assert (
        f"data.jsonl, row 2: a row must be a list of whole numbers in the column 'tokens', and "
        f"this is {shown}"
    ) in refused(rows, streaming=streaming)


@BOTH
@pytest.mark.parametrize(("value", "shown"), [(4, "int 4"), ([1, 2], "list [1, 2]")])
def test_texts_are_texts(streaming: bool, value: Any, shown: str) -> None:
    assert f"data.jsonl, row 1: a row must be a text in the column 'text', and this is {shown}" in (
        refused([{"text": value}] * 2, streaming=streaming)
    )


def test_the_row_of_a_shuffled_stream_is_that_of_the_file() -> None:
    write_rows([{"text": f"document {i}"} for i in range(33)], "data/train-0.jsonl")
    write_rows([{"text": ["no", "text"]}], "data/train-1.jsonl")
    numbers = set()
    for seed in range(6):
        text = load_text(settings("data", seed=seed, heldout=0), Words())
        with pytest.raises(PluginError, match="a row must be a text") as error:
            list(text.train)
        (number,) = re.findall(r"row (\d+), in the order of its files:", str(error.value))
        numbers.add(int(number))
    assert numbers == {34, 1}  # of 34, when this file comes last, and when it comes first


@BOTH
def test_any_column_can_be_named(streaming: bool) -> None:
    flags = {"heldout": 0, "streaming": streaming}
    rows = [{"text": "no", "body": f"yes {i}", "ids": TOKENS[i]} for i in range(4)]
    assert sorted(row["text"] for row in load(rows, text_column="body", **flags).train) == [
        f"yes {i}" for i in range(4)
    ]
    read = load(rows, text_column="ids", **flags).train
    assert sorted(row["tokens"] for row in read) == TOKENS[:4]
    assert (
        "--text_column bodi: --dataset_path data.jsonl has no such column; did you mean 'body'?"
        in (refused(rows, text_column="bodi", **flags))
    )
    assert "has the columns corpus: one must be called tokens or input_ids or text or problem;" in (
        refused([{"corpus": "x"}], **flags)
    )


CHAT = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
SHAREGPT = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]


@BOTH
@pytest.mark.parametrize("name", ["messages", "conversation", "conversations"])
@pytest.mark.parametrize("chat", [CHAT, SHAREGPT])
def test_chats_are_trained_on_and_held_out(streaming: bool, name: str, chat: Any) -> None:
    rows = [{name: [{**chat[0]}, *chat[1:], {**chat[0]}]} for _ in range(1)]
    rows += [{name: []}, {name: None}]
    key = [*chat[0]][1]
    rows += [{name: [{**chat[0], key: f"number {i}"}, *chat[1:]]} for i in range(8)]
    text = load(rows, Chats(), heldout=4, streaming=streaming, use_chat_formatting=True)
    held = [row["conversation"] for row in text.heldout]
    assert held[0] == [*CHAT, CHAT[0]]  # with 8 tokens it is enough
    assert len(held) == 1
    trained = [row["conversation"] for row in text.train]
    assert sorted(chat[0]["content"] for chat in trained) == [f"number {i}" for i in range(8)]
    assert all(chat[1] == CHAT[1] for chat in trained)


@BOTH
@pytest.mark.parametrize(
    ("message", "has"),
    [({"role": "user", "content": None}, "role"), ({"role": "user"}, "role"),
     ({"role": None, "content": "a"}, "content"), ({"from": "human", "value": None}, "from")],
)  # fmt: skip
def test_a_message_without_a_word_is_refused_by_its_row(
    streaming: bool, message: Any, has: str
) -> None:
    rows = [{"messages": CHAT}, {"messages": [*CHAT, message]}]
    said = refused(rows, Chats(), streaming=streaming, use_chat_formatting=True)
    assert "data.jsonl, row 2: a message must have 'role' and 'content'" in said
    assert said.endswith(f", and this has {has}")


@BOTH
def test_a_file_may_have_messages_of_several_kinds(streaming: bool) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    rows = [{"messages": [*CHAT, call]}, {"messages": SHAREGPT}] * 5
    text = load(rows, Chats(), heldout=0, streaming=streaming, use_chat_formatting=True)
    read = [row["conversation"] for row in text.train]
    assert read.count(CHAT) == 5
    assert [*CHAT, {"role": "assistant", "tool_calls": [{"name": "f"}]}] in read


@BOTH
def test_chats_need_the_flag_and_the_flag_chats(streaming: bool) -> None:
    flags = {"streaming": streaming}
    assert (
        "data.jsonl has chats, in its column 'messages', and no text: add --use_chat_"
        in refused([{"messages": CHAT}], **flags)
    )
    assert "--text_column talk of --dataset_path data.jsonl holds chats; add --use_chat" in refused(
        [{"talk": CHAT}], text_column="talk", **flags
    )
    flags["use_chat_formatting"] = True
    assert "data.jsonl, row 1: a message must have 'role' and 'content', or" in refused(
        [{"messages": [{"who": "a", "what": "b"}]}], Chats(), **flags
    )
    assert (
        "row 1: a row must be a list of messages in the column 'messages', and this is str 'x'"
        in (refused([{"messages": "x"}], Chats(), **flags))
    )
    assert "--text_column tokens of --dataset_path data.jsonl holds no chats, but list" in refused(
        [{"tokens": [1, 2, 3, 4]}], Chats(), text_column="tokens", **flags
    )
    said = load([{"text": "what a user says"}], Chats(), heldout=0, **flags).train
    assert list(said) == [{"text": "what a user says"}]
