"""Which plugins run, and with which options: the part of the settings that is not SAELens'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SaePluginsError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sae_plugins.framework.plugin import Plugin
    from sae_plugins.framework.resolve import Choice, Selected


def choose(names: list[str], without: list[str], *, recorder: bool) -> Choice:
    """The chosen plugins, and the guard.

    Args:
        names: plugins and methods.
        without: what to leave out of them; the guard is not added if it is among these.
        recorder: choose it, too, since it has options: its import takes SAELens' ten seconds.
    """
    from sae_plugins.framework import resolve

    everything: list[Selected] = [*names]
    if "nan-guard" not in (*names, *without):
        everything.append("nan-guard")
    if recorder:
        from sae_plugins.runs.recorder import Recorder

        everything.append(Recorder)
    # a guard that is not wanted was not added
    left_out = [name for name in without if name != "nan-guard" or name in names]
    return resolve.choose(everything, left_out)


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
            options.setdefault(name, {})[option] = option_value(chosen[name].Options, option, value)
    if "output_path" in options.get("recorder", {}):
        raise SaePluginsError(
            "--recorder.output_path: here the recorder writes into the run's folder, which is "
            "--output_path"
        )
    if "recorder" in options:
        options["recorder"]["output_path"] = ""  # which the run knows
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


def option_value(options: type[BaseModel], name: str, value: Any) -> Any:
    """A text as the option of this name has it; other values, and of unknown names, stay."""
    from sae_plugins.base.values import read

    known = options.model_fields.get(name)
    return read(known.annotation, value) if known and isinstance(value, str) else value
