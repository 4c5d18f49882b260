"""What may happen to a JSON or YAML file: seeded, so that a failure can be had again."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

DEEP = 3000
"""Levels that neither a parser nor a copy in Python goes down."""


JUNK: list[Callable[[random.Random], Any]] = [
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([0, -1, 3, 2**31, 2**64, 10**40]),
    lambda rng: rng.choice([0.5, -1e300, 1e-320, float("nan"), float("inf"), float("-inf")]),
    lambda rng: rng.choice(
        ["", " ", "x", "none", "7", "../..", "a\nb", "\x00", "\ud7ff" * 3, "z" * 5000]
    ),
    lambda rng: rng.choice([[], [1, "a"], [[[]]], ["x"] * 300]),
    lambda rng: rng.choice([{}, {"a": 1}, {"": None}, {"a": {"b": [{}]}}]),
    lambda rng: f"@deep{rng.choice([30, 90, 400, 900, DEEP])}@",
]


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there are values in a tree, the root included."""
    yield at
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*at, key))


def changed(tree: Any, rng: random.Random, names: list[str]) -> tuple[Any, str]:
    """A tree with another value somewhere, with one less or one more; and what was done."""
    tree = copy.deepcopy(tree)
    at = rng.choice(list(places(tree)))
    if not at:
        return rng.choice(JUNK)(rng), "another root"
    *above, last = at
    container = tree
    for key in above:
        container = container[key]
    how = rng.choice(["replace", "replace", "replace", "remove", "add", "rename"])
    if how == "remove" or (how == "rename" and isinstance(container, list)):
        container.pop(last)
    elif how == "add" and isinstance(container, dict):
        container[rng.choice([*names, "new"])] = rng.choice(JUNK)(rng)
    elif how == "rename":
        container[rng.choice([*names, last + "s"])] = container.pop(last)
    else:
        container[last] = rng.choice(JUNK)(rng)
    return tree, f"{how} at {'.'.join(map(str, at))}"


def spoiled(text: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A text with other bytes: cut, flipped, doubled, nested, of something else."""
    place = rng.randrange(len(text))
    whole: dict[str, bytes] = {
        "cut": text[:place],
        "flipped": text[:place] + bytes([text[place] ^ 1 << rng.randrange(8)]) + text[place + 1 :],
        "doubled": text[:place] + text[place // 2 :],
        "two files": text + text,
        "nested lists": b"[" * DEEP + b"]" * DEEP,
        "nested in a value": b'{"metadata": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        "opened": b"{" * DEEP,
        "nothing": b"",
        "zeros": bytes(40),
        "UTF-16": text.decode().encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + text,
        "no UTF-8": text[:place] + b"\xff\xfe" + text[place:],
        "a page": b"<html>404</html>",
    }
    how = rng.choice(list(whole))
    return whole[how], how


def mutated(tree: Any, seed: int, names: list[str], ending: str) -> tuple[bytes, str]:
    """A file's bytes, made of what was a tree, and what was done to it."""
    rng = random.Random(seed)
    dump: Callable[[Any], str] = json.dumps
    if ending == ".yaml":
        dump = lambda value: yaml.safe_dump(value, sort_keys=False)  # noqa: E731
    if rng.random() < 0.25:
        return spoiled(dump(tree).encode(), rng)
    changes = []
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        tree, how = changed(tree, rng, names) if isinstance(tree, (dict, list)) else (tree, "")
        changes.append(how)
    text = re.sub(r"[\"']?@deep(\d+)@[\"']?", _nested, dump(tree))
    return text.encode("utf-8", "surrogatepass"), ", ".join(filter(None, changes))


def _nested(match: re.Match[str]) -> str:
    levels = int(match[1])
    return "[" * levels + "]" * levels
