"""Tokens as people read them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

_WORD_BEGINS = "▁"
"""How tokenizers in the way of SentencePiece write a space."""
_A_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How they write bytes of what they have no token for; a new line, in some."""
_SPACE_AS_BYTE = "Ġ"
"""How those on bytes do."""
_JOINERS = "\u034f\u200c\u200d\u3164\ufe0e\ufe0f"
"""What changes the letter before it, as in an emoji of a family, and is nothing by itself."""
_HIDDEN = {"Cc", "Cf", "Zl", "Zp"}
"""Categories of characters that nothing shows, or that turn others round."""


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
    """The tokens of a tokenizer, each by itself, or as many as make whole letters."""

    def __init__(self, tokenizer: Any) -> None:
        """Look at how it writes them."""
        self._tokenizer = tokenizer
        known = tokenizer.get_vocab()
        self._is_on_bytes = any(token.startswith(_SPACE_AS_BYTE) for token in known)
        self._added = {*map(int, getattr(tokenizer, "added_tokens_decoder", {}))}
        self._known: dict[int, str | bytes] = {}

    def __len__(self) -> int:
        return len(self._tokenizer)

    def text(self, *tokens: int) -> str:
        """A passage as `letters` has it, with its spaces; bytes that are no letter as ⟨C3⟩.

        So are those of characters that nobody would see.
        """
        found = [self._piece(token) for token in tokens]
        raw = b"".join(piece for piece in found if isinstance(piece, bytes))
        text = "".join(piece for piece in found if isinstance(piece, str))
        text += raw.decode("utf-8", "surrogateescape")
        if text.isascii() and text.isprintable():
            return text
        shown = [
            "".join(f"⟨{byte:02X}⟩" for byte in letter.encode("utf-8", "surrogateescape"))
            if _is_hidden(letter, before)
            else letter
            for letter, before in zip(text, " " + text, strict=False)
        ]
        return "".join(shown)

    def is_part(self, token: int) -> bool:
        """Whether a token begins or ends inside a letter."""
        return isinstance(self._piece(token), bytes)

    def letters(self, tokens: Sequence[int]) -> list[int]:
        """Where each of the shortest passages begins that have whole letters.

        A token with a part of a letter whose rest is not there is a passage, too.
        """
        begins, at = list[int](), 0
        while at < len(tokens):
            begins.append(at)
            at = self._end(tokens, at)
        return begins

    def _end(self, tokens: Sequence[int], first: int) -> int:
        """Where the passage ends that begins with the first token."""
        raw = b""
        for at in range(first, len(tokens)):
            piece = self._piece(tokens[at])
            if not isinstance(piece, bytes):
                break
            raw += piece
            if isinstance(_letters(raw), str):
                return at + 1
        return first + 1

    def _piece(self, token: int) -> str | bytes:
        """A token's text, or its bytes where they are no whole letters."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> str | bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return f"[{token}]"
        if token in self._added:
            return str(piece)
        if self._is_on_bytes and all(letter in _bytes() for letter in piece):
            return _letters(bytes(_bytes()[letter] for letter in piece))
        if byte := _A_BYTE.fullmatch(piece):
            return _letters(bytes([int(byte[1], 16)]))
        if _WORD_BEGINS in piece:
            return str(piece.replace(_WORD_BEGINS, " "))
        return str(piece)


def _is_hidden(letter: str, before: str) -> bool:
    if letter in _JOINERS:
        return before.isspace()
    category = unicodedata.category(letter)
    return category == "Cs" or (category in _HIDDEN and letter not in "\t\n\r")


def _letters(raw: bytes) -> str | bytes:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
