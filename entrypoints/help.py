"""What `--help` prints, of any command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from sae_plugins.entrypoints import terminal
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.fields import shown
from sae_plugins.framework.architectures import ARCHITECTURES
from sae_plugins.settings.flags import Flag

_KINDS = {
    "bool": "true|false",
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "dict": "JSON",
    "list[int]": "N...",
    "list[int|none]": "N...",
    "list[str]": "NAME...",
}
_KINDS_BY_NAME = {
    "output_path": "DIR",
    "noise_from": "DIR",
    "resume": "DIR",
    "cache_path": "DIR",
    "activation_cache": "DIR",
    "cache_budget": "SIZE",
    "down_to": "SIZE",
    "older_than": "DAYS",
    "results": "DIR...",
    "recipe": "NAME|FILE.yaml",
    "data": "world|hub|DIR",
    "revision": "BRANCH",
}
_WIDEST, _NARROWEST = 42, 30
"""Of the column with the flags, and of that with what they are."""


def help_text(command: Command, width: int | None = None) -> str:
    """What a command says of itself, in lines of `width` characters."""
    return "\n\n".join(_sections(command, min(width or terminal.width(), 120))) + "\n"


def _sections(command: Command, width: int) -> Iterator[str]:
    flags = command.flags().values()
    words = ["usage: sae-plugins", command.name, "COMMAND" if command.actions else command.operand]
    yield " ".join(filter(None, [*words, "[flags]" if flags else ""]))
    about = command.about or f"{command.summary[:1].upper()}{command.summary[1:]}."
    yield _filled(about, width)
    if command.examples:
        yield f"examples:\n{command.examples.rstrip()}"
    yield from filter(None, [_filled(command.notes, width)])
    lists = dict(command.lists())
    if command.actions:
        lists["commands:"] = {each.name.split()[-1]: each.summary for each in command.actions}
    for title, rows in lists.items():
        yield _table(title, rows, width)
    for group, title in command.groups.items():
        rows = {_left(flag): _text(flag) for flag in flags if flag.group == group}
        if rows or "\n" in title:
            yield _table(title.rstrip(), rows, width)


def _filled(text: str, width: int) -> str:
    """Prose in lines of `width` characters; lines that are indented or empty stay as they are."""
    lines: list[str] = []
    for is_prose, block in groupby(text.strip().splitlines(), lambda line: line[:1].strip() != ""):
        found = list(block)
        lines += textwrap.wrap(" ".join(found), width) if is_prose else found
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, str], width: int) -> str:
    column = min(max(map(len, rows), default=0) + 4, _WIDEST)
    room = max(width - column, _NARROWEST)
    lines = (terminal.in_columns(f"  {left}", text, column, room) for left, text in rows.items())
    return "\n".join([title, *lines])


def _left(flag: Flag) -> str:
    """A flag with what may follow it."""
    kinds = [_KINDS.get(kind, kind) for kind in flag.alternatives]
    words = "|".join(flag.choices)
    short = words if len(words) <= _WIDEST // 2 else "WORD"
    several = f"{short}..."
    kind = "|".join({"choice": short, "list[choice]": several}.get(kind, kind) for kind in kinds)
    if flag.type == "bool" and flag.default is False:
        kind = ""
    return f"--{flag.name} {_KINDS_BY_NAME.get(flag.name, kind)}".rstrip()


def _text(flag: Flag) -> str:
    """What a flag is, its words where they stand nowhere else, its default and its owners."""
    text = flag.help.rstrip(".").removeprefix("The ")
    text = text[:1].lower() + text[1:] if text[1:2].islower() else text
    if flag.choices and "WORD" in _left(flag):
        text += f": {', '.join(flag.choices)}"
    default = flag.default
    if not (default is False or default in (None, (), "", {})):
        values = map(shown, default) if isinstance(default, list) else [shown(default)]
        text += f" (default {' '.join(values)})"
    return text + (f" [{_family(flag.architectures)}]" if flag.architectures else "")


def _family(names: Sequence[str]) -> str:
    kinds = {name for name in ARCHITECTURES if "topk" in name}
    return "topk kinds" if kinds == set(names) else ", ".join(names)
