"""The suites that a command line of `sae-plugins evaluate` chooses, with their settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems, nearest
from sae_plugins.entrypoints.evaluate_flags import FLAGS
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.suggestions import Owners, unknown_flag, unknown_option

if TYPE_CHECKING:
    from sae_plugins.eval_suites.suite import Suite


def chosen_suites(line: Line, problems: Problems) -> list[str]:
    """The names of the suites to run; none is imported.

    `problems` hears of suites that there are not, and of settings and flags that are none.
    """
    from sae_plugins.eval_suites import registry

    given = [name for words in line.given.get("suite", []) for name in words.split(",") if name]
    names: list[str] = []
    for name in dict.fromkeys(given or registry.built_in()):
        if "/" in name:
            problems.add(f"{name} is no suite: SAEs are named before the flags")
            line.operands.append(name)
            continue
        names += [name] if name in registry.names() else nearest(name, registry.names())[:1]
        with problems:
            registry.find(name)
    installed = registry.options()
    chosen = {name: installed[name] for name in names}
    owners = Owners("suite", chosen, installed)
    problems.add(*(unknown_flag(name, FLAGS, owners, "evaluate") for name in line.unknown))
    strangers = [key for key in line.options if key.partition(".")[0] not in chosen]
    problems.add(*(unknown_option(key, owners) for key in strangers))
    return names


def with_settings(
    names: Iterable[str],
    preset: str,
    exact: bool,
    options: Mapping[str, str],
    problems: Problems,
) -> dict[str, tuple[Suite, Any]]:
    """Each suite with its settings: the preset's, without shortcuts if so wished, then the flags'.

    `problems` hears of suites that cannot be imported, and of settings that do not fit. If there
    are some already, suites without settings are not imported.
    """
    from sae_plugins.eval_suites import registry
    from sae_plugins.settings.choice import option_value  # which imports pydantic

    suites = {}
    for name in names:
        stem = f"{name}."
        own = {key: text for key, text in options.items() if key.startswith(stem)}
        if problems and not own:
            continue
        with problems:
            suite = registry.load(name)
            registry.check_installed(suite)
            values = shortcuts_off(suite) if exact else {}
            for key, text in own.items():
                values[key.removeprefix(stem)] = option_value(suite.Settings, key, text)
            suites[name] = (suite, suite.settings(preset, values))
    return suites


def shortcuts_off(suite: Suite) -> dict[str, Any]:
    """The settings that a suite marks as shortcuts, switched off."""
    fields = suite.Settings.model_fields.items()
    return {
        name: False
        for name, field in fields
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("shortcut")
    }
