"""The suites that a command line of `sae-plugins evaluate` chooses, with their settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.settings.choice import option_value

if TYPE_CHECKING:
    from sae_plugins.eval_suites.suite import Suite


def chosen_suites(given: Mapping[str, Any], settings: Iterable[str]) -> list[str]:
    """The names of the suites to run; none is imported.

    Raises:
        SaePluginsError: there is no such suite, or a setting belongs to one that is not chosen.
    """
    from sae_plugins.base.errors import did_you_mean
    from sae_plugins.eval_suites import registry

    names = list(dict.fromkeys(given.get("suite") or registry.built_in()))
    for name in names:
        try:
            registry.find(name)
        except SaePluginsError as error:
            hint = "" if "/" not in name else "; SAEs are named before the flags"
            raise SaePluginsError(f"{error}{hint}") from error
    for key in settings:
        suite = key.partition(".")[0]
        if suite not in registry.names():
            raise SaePluginsError(
                f"--{key}: no suite {suite!r} is installed: {did_you_mean(suite, names)}"
            )
        if suite not in names:
            raise SaePluginsError(
                f"--{key}: the suite {suite!r} is not chosen; add --suite {suite}, or leave the "
                "setting out"
            )
    return names


def with_settings(
    names: Iterable[str], preset: str, exact: bool, settings: Mapping[str, list[str]]
) -> dict[str, tuple[Suite, Any]]:
    """Each suite with its settings: the preset's, without shortcuts if so wished, then the flags'.

    Raises:
        SaePluginsError: a suite cannot be imported, or a setting is unknown or unfit.
    """
    from sae_plugins.eval_suites import registry

    suites = {}
    for name in names:
        suite = registry.load(name)
        values = shortcuts_off(suite) if exact else {}
        for key, texts in settings.items():
            whose, _, field = key.partition(".")
            if whose == name:
                values[field] = option_value(suite.Settings, field, " ".join(texts))
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
