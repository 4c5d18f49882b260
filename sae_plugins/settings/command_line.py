"""The command line of `sae-plugins train`, read into values by flag; no slow imports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.settings.flags import all_flags, unknown_flag


def parse(
    arguments: Sequence[str],
    options_of: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: (),
) -> dict[str, Any]:
    """Settings by flag name, from a command line.

    `--flag value`, `--flag=value`, a bare `--flag` for what can be true; the last one counts,
    except that --plugin and --without add up. A flag with a dot is a plugin's option and stays
    text.

    Args:
        arguments: what follows `train`.
        options_of: the options ("reorder.interval") of the plugins that the settings choose; asked
            only if a flag is unknown, to suggest among them.

    Raises:
        SaePluginsError: an unknown flag, a missing or an unfit value.
    """
    from sae_plugins.settings.values import convert  # which imports pydantic

    settings: dict[str, Any] = {}
    unknown: list[str] = []
    rest = list(arguments)
    while rest:
        if not rest[0].startswith("--") or rest[0] == "--":
            raise SaePluginsError(
                f"{rest[0]!r} is no flag; flags look like --plugin NAME or --lr=0.001"
            )
        name, values = take(rest)
        flag = all_flags().get(name)
        if flag is None and "." in name:
            settings[name] = _one(name, values)
        elif flag is None:
            unknown.append(name)
        elif flag.type == "list[str]":
            settings.setdefault(name, []).append(_one(name, values))
        elif flag.is_list and len(values) > 1:
            settings[name] = convert(flag, values)
        elif not values and "bool" in flag.alternatives:
            settings[name] = True
        else:
            settings[name] = convert(flag, _one(name, values))
    if unknown:
        raise SaePluginsError(unknown_flag(unknown[0], options_of(settings)))
    return settings


def take(rest: list[str]) -> tuple[str, list[str]]:
    """Remove a flag, which comes first, and the values that follow it from `rest`."""
    name, equals, value = rest.pop(0)[2:].partition("=")
    values = [value] if equals else []
    while not equals and rest and not rest[0].startswith("--"):
        values.append(rest.pop(0))
    return name, values


def _one(name: str, values: Sequence[str]) -> str:
    if not values:
        raise SaePluginsError(f"--{name} needs a value: --{name} VALUE")
    if len(values) > 1:
        raise SaePluginsError(
            f"--{name} takes one value, and {values[1]!r} follows it: every flag begins with --"
        )
    return values[0]
