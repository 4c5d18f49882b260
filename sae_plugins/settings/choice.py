"""Which plugins run, and with which options: the part of the settings that is not SAELens'."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from sae_plugins.base.errors import SaePluginsError

if TYPE_CHECKING:
    from sae_plugins.framework.plugin import Plugin
    from sae_plugins.framework.resolve import Plan, Selected


def selected(names: list[str], without: list[str], *, recorder: bool) -> list[Selected]:
    """The chosen names, the guard, and the recorder, whose import takes SAELens' ten seconds."""
    everything: list[Selected] = [*names]
    if "nan-guard" not in (*names, *without):
        everything.append("nan-guard")
    if recorder:
        from sae_plugins.runs.recorder import Recorder

        everything.append(Recorder)
    return everything


def resolve_plan(
    names: list[str],
    without: list[str],
    options: dict[str, dict[str, Any]],
    training: Mapping[str, Any],
    sae_lens: Mapping[str, Any],
) -> Plan:
    """The plan of the chosen plugins, the recorder among them where it has options."""
    from sae_plugins.framework.resolve import resolve

    recorder = "recorder" in options
    if recorder:
        options = options | {"recorder": {"output_path": "", **options["recorder"]}}
    return resolve(
        selected(names, without, recorder=recorder),
        without=left_out(names, without),
        options=options,
        training=training,
        sae_lens=sae_lens,
    )


def chosen_plugins(
    names: list[str], without: list[str], *, recorder: bool
) -> dict[str, type[Plugin]]:
    """The plugins that will run, by name, before their options are known."""
    from sae_plugins.framework.resolve import choose

    return choose(selected(names, without, recorder=recorder), left_out(names, without))[1]


def left_out(names: list[str], without: list[str]) -> list[str]:
    """What to leave out of `selected`, which does not add a guard that is not wanted."""
    return [name for name in without if name != "nan-guard" or name in names]


def merged_options(
    recipe: Mapping[str, Any],
    flags: Mapping[str, Any],
    chosen: Mapping[str, type[Plugin]],
) -> dict[str, dict[str, Any]]:
    """Options by plugin: the recipe's, unless flags left their plugin out, under the flags'."""
    options: dict[str, dict[str, Any]] = {}
    changed = "plugin" in flags or "without" in flags
    for source in (recipe, flags):
        for key, value in source.items():
            name, dot, option = key.partition(".")
            if not dot:
                continue
            if name not in chosen:
                if source is recipe and changed:
                    continue
                raise SaePluginsError(f"--{key}: {_not_chosen(name, chosen)}")
            options.setdefault(name, {})[option] = option_value(chosen[name], option, value)
    return options


def _not_chosen(name: str, chosen: Iterable[str]) -> str:
    from sae_plugins.base.errors import did_you_mean
    from sae_plugins.framework import registry

    if name in registry.installed():
        return (
            f"the plugin {name!r} is not chosen: add --plugin {name}, and name those of a recipe "
            "again, which --plugin replaces; or leave the option out"
        )
    return f"no plugin {name!r} is chosen: {did_you_mean(name, chosen)}"


def option_value(plugin: type[Plugin], option: str, value: Any) -> Any:
    """A text as the option's type has it: as it is, none, or JSON; wrong ones stay as they are."""
    from pydantic import TypeAdapter, ValidationError

    known = plugin.Options.model_fields.get(option)
    if known is None or not isinstance(value, str):
        return value
    adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, known.annotation))
    readings: list[Any] = [None, value] if value.lower() in ("none", "null") else [value]
    if value.startswith(("[", "{")):
        try:
            readings.append(json.loads(value))
        except ValueError:
            return value
    for reading in readings:
        try:
            return adapter.validate_python(reading)
        except ValidationError:
            continue
    return value
