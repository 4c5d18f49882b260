"""A flag's value: from the text of a command line, or from YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.settings.flags import Flag


def convert(flag: Flag, value: Any) -> Any:
    """A flag's value, from the text of a command line or from YAML.

    Raises:
        SaePluginsError: it does not have the flag's type.
    """
    if isinstance(value, dict) and "dict" in flag.alternatives:
        return value
    text = as_text(value)
    try:
        return _read_as(flag.alternatives, flag.choices, text)
    except ValueError:
        wanted = f"it must be {' or '.join(_in_words(flag))}"
        if "choice" in flag.alternatives:
            from sae_plugins.base.errors import did_you_mean

            also = [kind for kind in flag.alternatives if kind == "none"]
            wanted = did_you_mean(text, [*flag.choices, *also])
        raise SaePluginsError(f"--{flag.name} {text!r}: {wanted}") from None


def as_text(value: Any) -> str:
    """YAML's value as the command line would have it."""
    if isinstance(value, (list, tuple)):
        return " ".join(as_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _boolean(text: str) -> bool:
    return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def _none(text: str) -> None:
    if text.lower() not in ("none", "null"):
        raise ValueError("not none")


def _list_of(kind: str, text: str) -> list[Any]:
    items = [item for item in re.split(r"[\s,]+", text.strip("[]() ")) if item]
    return [_read_as(kind.split("|"), (), item) for item in items]


def _read_as(kinds: Iterable[str], choices: Sequence[str], text: str) -> Any:
    """The text as the first of `kinds` that it fits; ValueError if it fits none."""
    readers: dict[str, Callable[[str], Any]] = {
        "none": _none,
        "bool": _boolean,
        "int": int,
        "float": float,
        "dict": _mapping,
        "str": str,
        "choice": lambda word: choices[choices.index(word)],
    }
    for kind in kinds:
        try:
            if kind.startswith("list["):
                return _list_of(kind[5:-1], text)
            return readers[kind](text)
        except (ValueError, KeyError):
            continue
    raise ValueError(text)


def _in_words(flag: Flag) -> list[str]:
    words = {
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "str": "a text",
        "dict": "a JSON object",
        "choice": ", ".join(flag.choices),
        "list[int]": "whole numbers",
        "list[int|none]": "whole numbers or none",
    }
    return [words.get(kind, kind) for kind in flag.alternatives]
