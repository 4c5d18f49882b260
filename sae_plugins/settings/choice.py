"""Which plugins run, and with which options: the part of the settings that is not SAELens'."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems, SaePluginsError, nearest, prefixed
from sae_plugins.settings.command_line import Bare, needs_value
from sae_plugins.settings.flags import DASHBOARDS
from sae_plugins.settings.suggestions import Owners, unknown_option

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sae_plugins.framework.plugin import Plugin
    from sae_plugins.framework.resolve import Choice, Selected


def from_files(names: Iterable[str], problems: Problems) -> dict[str, Any]:
    """The classes that names such as FILE.py:CLASS mean, None of one that cannot be had.

    The names must be those of a command line, or of the study file that one names: this runs them.
    """
    from sae_plugins.framework import plugin_files, registry

    found: dict[str, Any] = {}
    for name in filter(registry.names_file, names):
        found[name] = None
        with problems, prefixed(f"--plugin {name}"):
            found[name] = plugin_files.load(name)
    return found


def corrected(names: list[str], problems: Problems) -> dict[str, str | None]:
    """What plugins and methods that cannot be had are misspellings of, None if nothing is near."""
    from sae_plugins.framework import registry

    meant: dict[str, str | None] = {}
    for name in names:
        with Problems() as own:
            registry.load(name)
        if own:
            known = registry.installed()
            meant[name] = None if name in known else next(iter(nearest(name, known)), None)
            problems.add(*([] if problems.mention(repr(name)) else own.sentences))
    return meant


def renamed(values: Mapping[str, Any], meant: Mapping[str, str | None]) -> dict[str, Any]:
    """Values by flag, the options of misspelt plugins under what these mean, or left out."""
    found = {}
    for key, value in values.items():
        name, dot, option = key.partition(".")
        if owner := meant.get(name, name) if dot else name:
            found[f"{owner}{dot}{option}"] = value
    return found


def choose(
    names: Sequence[Selected], without: list[str], flags: Iterable[str], problems: Problems
) -> Choice:
    """The chosen plugins, the guard, and the recorder if flags name an option of it.

    Its import takes SAELens' ten seconds; a run adds it in any case.
    """
    from sae_plugins.framework import resolve

    everything: list[Selected] = [*names]
    if "nan-guard" not in (*names, *without):
        everything.append("nan-guard")
    if any(flag.startswith("recorder.") for flag in flags):
        from sae_plugins.runs.recorder import Recorder

        everything.append(Recorder)
    # a guard that is not wanted was not added
    left_out = [name for name in without if name != "nan-guard" or name in names]
    for others in (left_out, []):
        with problems:
            return resolve.choose(everything, others)
    return resolve.Choice([], {})


def merged_options(
    recipe: Mapping[str, Any],
    flags: Mapping[str, Any],
    chosen: Mapping[str, type[Plugin]],
    owners: Owners,
    problems: Problems,
) -> dict[str, dict[str, Any]]:
    """Options by plugin: the recipe's, unless flags left their plugin out, under the flags'."""
    options: dict[str, dict[str, Any]] = {}
    changed = "plugin" in flags or "without" in flags
    for source in (recipe, flags):
        for key, value in source.items():
            name, dot, option = key.partition(".")
            if dot and name in chosen:
                with problems:
                    value = option_value(chosen[name].Options, key, value)
                    options.setdefault(name, {})[option] = value
            elif dot and not (source is recipe and changed):
                whose = "the recipe's " if source is recipe else ""
                problems.add(whose + unknown_option(key, owners))
    given = options.get("recorder", {})
    if "output_path" in given:
        problems.add(
            "--recorder.output_path: here the recorder writes into the run's folder, which is "
            "--output_path"
        )
    problems.add(
        *(f"--recorder.{name}: here it is --{name}" for name in DASHBOARDS if name in given)
    )
    if "recorder" in options:
        options["recorder"]["output_path"] = ""  # which the run knows
    return options


def owners(
    chosen: Mapping[str, type[Plugin]], left_out: Collection[str], replaced: Sequence[str]
) -> Owners:
    """The options of the chosen plugins, and those of all that are installed; see `Owners`."""
    from sae_plugins.framework import registry

    named = {name: list(plugin.Options.model_fields) for name, plugin in chosen.items()}
    return Owners("plugin", named, registry.options(), left_out, replaced)


def option_value(options: type[BaseModel], key: str, value: Any) -> Any:
    """A text as the option of this key has it; other values, and of unknown options, stay.

    Raises:
        SaePluginsError: there is no text, and the option cannot be true.
    """
    from sae_plugins.base.values import read

    known = options.model_fields.get(key.rpartition(".")[2])
    if not known or not isinstance(value, str):
        return value
    found = read(known.annotation, value)
    if isinstance(value, Bare) and found is not True:
        raise SaePluginsError(needs_value(key))
    return found
