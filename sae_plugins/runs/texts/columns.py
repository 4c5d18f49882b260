"""Which column of a dataset SAELens reads, and what may stand in it."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from sae_plugins.base.errors import PluginError, did_you_mean
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.texts.loading import reason

TOKENS, TEXT, CHAT = "tokens", "text", "conversation"
"""What a column may hold, each by the name of a column in which SAELens looks for it."""
_NAMES = {
    TOKENS: ("tokens", "input_ids"),
    TEXT: ("text", "problem"),
    CHAT: ("conversation", "conversations", "messages"),
}
_LOOKED_AT = 1000
"""Rows at most that are looked at for one that is not empty."""
_SAID = {"content", "tool_calls", "function_call"}
"""What a message says."""
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
"""What ShareGPT calls the roles of chat templates."""


@dataclass(frozen=True)
class Column:
    """A column that is read.

    Attributes:
        name: in the dataset.
        kind: what it holds: `TOKENS`, `TEXT` or `CHAT`.
        length: tokens that a row of tokens needs.
    """

    name: str
    kind: str
    length: int = 1

    def document(self, value: Any, where: str) -> Any:
        """What a row's value is to SAELens; None where the row is without text.

        Args:
            value: of this column.
            where: the row, for errors.

        Raises:
            PluginError: SAELens would misread it, or break on it.
        """
        if value is None or (isinstance(value, str | list) and not value):
            return None
        if self.kind == TEXT and isinstance(value, str):
            return value
        if self.kind == CHAT and isinstance(value, list) and _are(Mapping, value):
            return [_message(message, where) for message in value]
        if self.kind != TOKENS or not isinstance(value, list) or {*map(type, value)} != {int}:
            raise PluginError(
                f"{where}: {_HOLDS[self.kind]} in the column {self.name!r}, and this is "
                f"{_shown(value)}"
            )
        if len(value) < self.length:
            raise PluginError(
                f"{where} has {len(value)} tokens, and a prompt has {self.length}: rows of tokens "
                f"are read as they are, one prompt each; give --context_size {len(value)} or less, "
                "leave shorter rows out, or join them"
            )
        return value


_HOLDS = {
    TOKENS: "a row must be a list of whole numbers",
    TEXT: "a row must be a text",
    CHAT: "a row must be a list of messages",
}


def _are(kind: type, values: Sequence[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)}"


def _message(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A message as chat templates read it; ShareGPT's are `from` and `value`.

    Files give it keys that other messages have, without a value, which templates write as None.
    """
    message = {key: value for key, value in message.items() if value is not None}
    if "role" in message and _SAID & {*message}:
        return message
    if "from" not in message or "value" not in message:
        raise PluginError(
            f"{where}: a message must have 'role' and 'content', or 'from' and 'value', and this "
            f"has {', '.join(message) or 'nothing'}"
        )
    role = str(message["from"])
    return {"role": _ROLES.get(role, role), "content": message["value"]}


def choose_column(rows: Any, settings: SAELensSettings, place: str) -> Column:
    """The column that is read of a dataset, and what it holds.

    Raises:
        PluginError: there is none, or nobody can say which.
    """
    first = next(read_rows(rows, place), None)
    if first is None:
        split = settings.runner.get("dataset_split")
        raise PluginError(f"{place} has no rows{f' in --dataset_split {split}' if split else ''}")
    names = rows.column_names or [*first]  # a stream may not know them
    chats = bool(settings.runner.get("use_chat_formatting"))
    size = settings.runner.get("context_size", 128)
    given = settings.runner.get("text_column")
    if given is not None:
        return Column(given, _kind(rows, given, names, chats, place), size)
    known = dict.fromkeys(_NAMES[CHAT], CHAT) | {TEXT: TEXT}  # a text is what a user says
    if not chats:
        known = dict.fromkeys(_NAMES[TOKENS], TOKENS) | dict.fromkeys(_NAMES[TEXT], TEXT)
    for name, kind in known.items():
        if name in names:
            return Column(name, kind, size)
    raise PluginError(_no_column(names, known, chats, place))


def read_rows(rows: Any, place: str) -> Iterator[Mapping[str, Any]]:
    """Rows one by one; of what cannot be read, the sentence names the place."""
    left = iter(rows)
    for number in count(1):
        try:
            row = next(left)
        except StopIteration:
            return
        except Exception as error:  # of the network, the Hub, the disk, and the files' contents
            where = f"cannot be read further than to row {number - 1}"
            if number == 1:
                where = "cannot be read"
            raise PluginError(f"{place} {where} {reason(error)}") from error
        yield row


def _kind(rows: Any, name: str, names: Sequence[str], chats: bool, place: str) -> str:
    """What a column holds that --text_column names."""
    if name not in names:
        raise PluginError(
            f"--text_column {name}: {place} has no such column; {did_you_mean(name, names)}"
        )
    values = (row.get(name) for row in islice(read_rows(rows, place), _LOOKED_AT))
    value = next(filter(None, values), "")
    if isinstance(value, str):
        return TEXT
    if isinstance(value, list) and _are(Mapping, value):
        if chats:
            return CHAT
        raise PluginError(f"--text_column {name} of {place} holds chats; add --use_chat_formatting")
    if chats:
        raise PluginError(
            f"--use_chat_formatting: --text_column {name} of {place} holds no chats, "
            f"but {_shown(value)}; leave one of them out"
        )
    return TOKENS


def _no_column(names: Sequence[str], known: Iterable[str], chats: bool, place: str) -> str:
    chat = next((name for name in _NAMES[CHAT] if name in names), None)
    if chat and not chats:
        return (
            f"{place} has chats, in its column {chat!r}, and no text: add --use_chat_formatting, "
            "with which the tokenizer's chat template makes them text"
        )
    return (
        f"{place} has the columns {', '.join(names)}: one must be called {' or '.join(known)}; "
        "name another with --text_column"
    )
