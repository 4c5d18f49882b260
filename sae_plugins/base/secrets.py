"""What must not be written, printed or sent: tokens, passwords, and what signs an address."""

from __future__ import annotations

import re

HIDDEN = "..."
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}")
_USER = re.compile(r"(?<=://)[^/\s\"'@]+@")
_QUERY = re.compile(r"(?<=\?)[^\s\"'<>]+=[^\s\"'<>]+")


def without_secrets(text: str) -> str:
    """A text without tokens, without `user:password@` in addresses, and without their queries."""
    for pattern in (_TOKEN, _USER, _QUERY):
        text = pattern.sub(HIDDEN, text)
    return text
