"""The data of a page as scripts, since a page that is opened from disk may fetch nothing else.

All data are one call of a function with JSON. Every letter of it is ASCII and none is `<`, so that
no text of tokens can end a script, begin another, or be read in another encoding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import SaePluginsError

FEATURES = 64
"""Features of a shard."""
DATA = "data"
INDEX = f"{DATA}/index.js"
_NAME = "SAE_FEATURES"


def shard_name(sae: int, number: int) -> str:
    """The file of a shard, in the folder of the pages."""
    return f"{DATA}/{sae}-{number:04}.js"


def script(kind: str, *contents: Any) -> str:
    """A script that hands over data: `index` or `shard`."""
    arguments = (json.dumps(each, separators=(",", ":"), allow_nan=False) for each in contents)
    return f"{_NAME}.{kind}({','.join(arguments)})\n".replace("<", "\\u003c")


def read(file: Path) -> Any:
    """The data of a script, the last of what it hands over.

    Raises:
        SaePluginsError: it is none of ours.
    """
    text = file.read_text("ascii")
    head, _, rest = text.rstrip().removesuffix(")").partition("(")
    try:
        if not head.startswith(f"{_NAME}."):
            raise ValueError
        return json.loads(f"[{rest}]")[-1]
    except ValueError as error:
        raise SaePluginsError(f"{file} holds no feature pages, or is damaged") from error


def activations(example: list[Any]) -> list[float]:
    """The activation at each token of an example, which names only those where it fires."""
    _, tokens, fires = example
    found = dict(zip(fires[::2], fires[1::2], strict=True))
    return [float(found.get(place, 0.0)) for place in range(len(tokens))]


class Words:
    """The texts of a shard: each once, and everywhere else its number."""

    def __init__(self) -> None:
        """None yet."""
        self._numbers: dict[tuple[int, ...], int] = {}

    def number(self, *tokens: int) -> int:
        """The number of a token, or of some that make a letter together."""
        return self._numbers.setdefault(tokens, len(self._numbers))

    def tokens(self) -> list[tuple[int, ...]]:
        """All of them, by their numbers."""
        return list(self._numbers)
