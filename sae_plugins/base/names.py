"""Names of files, for names that may hold anything."""

from __future__ import annotations

import hashlib
import re

_DIGITS = 6


def file_name(name: str, longest: int = 80) -> str:
    """A name that any disk takes: of letters, digits and _ . + - alone, and no hidden one.

    Another name may get the same; see `own_file_name`.
    """
    return re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip(".-")[:longest] or "unnamed"


def own_file_name(name: str, longest: int = 60) -> str:
    """The same, and no other name gets it: one that had to be changed ends in a hash.

    So does one that looks as if it did.
    """
    plain = file_name(name, longest)
    if plain == name and not re.search(rf"-[0-9a-f]{{{_DIGITS}}}$", name):
        return name
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]}"
