"""Tokens as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

_WORD_BEGINS = "▁"
"""How tokenizers in the way of SentencePiece write a space."""
_A_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How they write bytes of what they have no token for; a new line, in some."""
_SPACE_AS_BYTE = "Ġ"
"""How those on bytes do."""


@cache
def _bytes() -> dict[str, int]:
    """The letters with which tokenizers on bytes write them."""

    def letters() -> Iterator[tuple[str, int]]:
        moved = 256
        for byte in range(256):
            is_itself = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
            yield chr(byte if is_itself else moved), byte
            moved += not is_itself

    return dict(letters())


class Vocabulary:
    """The tokens of a tokenizer, each by itself."""

    def __init__(self, tokenizer: Any) -> None:
        """Look at how it writes them."""
        self._tokenizer = tokenizer
        known = tokenizer.get_vocab()
        self._is_on_bytes = any(token.startswith(_SPACE_AS_BYTE) for token in known)
        self._added = {*map(int, getattr(tokenizer, "added_tokens_decoder", {}))}
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._tokenizer)

    def text(self, token: int) -> str:
        """A token with its spaces; bytes that are no letter by themselves as \\xE4."""
        if token not in self._known:
            self._known[token] = self._text(token)
        return self._known[token]

    def _text(self, token: int) -> str:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return f"[{token}]"
        if token in self._added:
            return str(piece)
        if self._is_on_bytes and all(letter in _bytes() for letter in piece):
            raw = bytes(_bytes()[letter] for letter in piece)
            return raw.decode("utf-8", "backslashreplace")
        if byte := _A_BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)]).decode("utf-8", "backslashreplace")
        if _WORD_BEGINS in piece:
            return str(piece.replace(_WORD_BEGINS, " "))
        return str(piece)
