"""A command line, read by a table of flags: every command's is; no slow imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_plugins.base.errors import Problems, SaePluginsError, nearest
from sae_plugins.settings.flags import Flag, all_flags
from sae_plugins.settings.suggestions import unknown_flag

_BOOLEANS = ("true", "false", "yes", "no")


class Bare(str):
    """What an option without a value says, "true"; it needs a value unless it can be true."""


@dataclass
class Line:
    """A command line, by its parts.

    Attributes:
        operands: what belongs to no flag, such as the folders of runs.
        given: values by flag.
        options: texts by the option of a plugin or a suite, such as "reorder.interval".
        unknown: flags that there are not.
        repeated: flags and options given more than once, of which the last one counts.
        unclear: what follows these and may be operands, and operands that are empty.
    """

    operands: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


def parse(
    words: Sequence[str], flags: Mapping[str, Flag], problems: Problems, operands: bool = False
) -> Line:
    """Read `--flag value`, `--flag=value`, and a bare `--flag` for what can be true.

    Operands come first, or after a flag that takes fewer values than follow it.

    Args:
        words: what follows the command.
        flags: those of the command, by name; a flag with a dot is an option.
        problems: hears of values that are missing or do not fit. The line then has what was
            probably meant, or nothing, so that what else is wrong can be found.
        operands: whether the command takes any.
    """
    line, rest = Line(), list(words)
    while rest:
        if not rest[0].startswith("-") and operands:
            line.operands.append(rest.pop(0))
            continue
        if not rest[0].startswith("--") or rest[0] == "--":
            word = rest.pop(0)
            near = nearest(word.lstrip("-"), flags)[:1]
            cure = f"did you mean '--{near[0]}'?" if near else "flags begin with --"
            problems.add(f"{word!r} is no flag: {cure}")
            continue
        has_value = "=" in rest[0]
        name, values = _taken(rest)
        flag = flags.get(name)
        if flag is None and name.find(".") < 1:  # an option has an owner
            line.unknown.append(name)
            line.unclear += values
            continue
        if flag is not None and not flag.is_list:
            takes = 1
            if "bool" in flag.alternatives and (values or ["?"])[0].lower() not in _BOOLEANS:
                takes = 0 if operands and not has_value else 1
            values, more = values[:takes], values[takes:]
            line.operands += more if operands else []
            if more and not operands:
                problems.add(
                    f"--{name} takes one value, and {more[0]!r} follows it: every flag begins with "
                    "--"
                )
        if name in (line.given if flag else line.options) and not (flag and flag.adds):
            line.repeated.append(name)
        if flag is None:
            line.options[name] = " ".join(values) if values else Bare("true")
        elif not values and "bool" not in flag.alternatives:
            problems.add(needs_value(name))
        elif not all(map(str.strip, values)):
            problems.add(f"--{name}: it is empty")
        else:
            _set(line.given, flag, values, problems)
    return line


def needs_value(name: str) -> str:
    """What to say about a flag or an option without a value."""
    return f"--{name} needs a value: --{name} VALUE"


def train_flags(words: Sequence[str]) -> dict[str, Any]:
    """Values by flag, and texts by option, of a command line of `sae-plugins train`.

    Raises:
        SaePluginsError: unknown flags, and missing or unfit values.
    """
    problems = Problems()
    line = parse(words, all_flags(), problems)
    problems.add(*(unknown_flag(name, all_flags()) for name in line.unknown))
    problems.stop()
    return {**line.given, **line.options}


def _taken(rest: list[str]) -> tuple[str, list[str]]:
    """Remove a flag, which comes first, and the values that follow it from `rest`."""
    name, equals, value = rest.pop(0)[2:].partition("=")
    values = [value] if equals else []
    while not equals and rest and not rest[0].startswith("--"):
        values.append(rest.pop(0))
    return name, values


def _set(given: dict[str, Any], flag: Flag, texts: Sequence[str], problems: Problems) -> None:
    if flag.type == "list[str]" or not texts:
        value: Any = list(texts) or True
    else:
        from sae_plugins.settings.values import convert  # which imports pydantic

        try:
            value = convert(flag, list(texts))
        except SaePluginsError as error:
            problems.add(*error.args)
            meant = nearest(texts[0], flag.choices)
            if meant:
                given[flag.name] = meant[0]
            return
    given[flag.name] = [*given.get(flag.name, []), *value] if flag.adds else value
