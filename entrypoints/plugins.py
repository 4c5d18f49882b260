"""`sae-plugins plugins`: list them, show one, and begin one."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems
from sae_plugins.entrypoints import plugins_new
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.fields import bounds, rounded, type_name
from sae_plugins.entrypoints.terminal import table, width
from sae_plugins.settings.command_line import Line

if TYPE_CHECKING:
    from sae_plugins.framework.plugin import Method, Plugin


def _list(_: Line, problems: Problems) -> int:
    """Print a line per installed plugin; none of them is imported."""
    problems.stop()
    from sae_plugins.framework.registry import listing

    entries = sorted(listing(), key=lambda entry: (entry.kind != "method", entry.name))
    names = max(len(entry.name) for entry in entries)
    rows = {}
    for entry in entries:
        left = f"{entry.name:<{names}}  {entry.kind:<9}  {entry.distribution} {entry.version}"
        rows[left] = entry.summary or "(no description)"
    print(table(rows))
    return 0


def _show(line: Line, problems: Problems) -> int:
    """Print everything about one plugin or method."""
    problems.stop()
    from sae_plugins.framework import plugin_files, registry
    from sae_plugins.framework.plugin import Plugin

    (name,) = line.operands
    if registry.names_file(name):
        loaded, whose = plugin_files.load(name), plugin_files.parted(name)[0]
    else:
        loaded, entry = registry.load(name), registry.installed()[name][0]
        whose = f"{entry.distribution} {entry.version}"
    lines = list(_plugin(loaded) if issubclass(loaded, Plugin) else _method(loaded))
    kind = "mechanism" if issubclass(loaded, Plugin) else "method"
    print(f"{loaded.name}: a {kind} of {whose}\n")
    print(_documentation(loaded))
    print("\n".join(lines))
    return 0


COMMAND = Command(
    "plugins",
    "list or show plugins, or begin one",
    _list,
    actions=(
        Command("plugins list", "the installed plugins and methods, one a line", _list),
        Command("plugins show", "options, requirements, and a method's tables", _show, "PLUGIN"),
        Command(
            "plugins new",
            "a package with one mechanism, to start from",
            plugins_new.new,
            "NAME",
            plugins_new.ABOUT,
            flags=lambda: plugins_new.FLAGS,
        ),
    ),
)


def _documentation(loaded: type[Any]) -> str:
    return textwrap.indent(inspect.cleandoc(loaded.__doc__ or "(no description)"), "  ")


def _wrap(text: str, indent: int) -> str:
    blank = " " * indent
    return textwrap.fill(text, width(), initial_indent=blank, subsequent_indent=blank)


# -- mechanisms --------------------------------------------------------------------------------


def _plugin(plugin: type[Plugin]) -> Iterator[str]:
    yield "\noptions:"
    if not plugin.Options.model_fields:
        yield "  none"
    for name, field in plugin.Options.model_fields.items():
        symbol = f"   (the paper's {field.title})" if field.title else ""
        yield f"  --{plugin.name}.{name} {type_name(field.annotation)}   {bounds(field)}{symbol}"
        if field.description:
            yield _wrap(field.description, 6)
    for what, values in (
        ("requires", plugin.requires),
        ("comes after", plugin.after),
        ("comes before", plugin.before),
        ("cannot be combined with", plugin.conflicts),
        ("claims for itself", plugin.claims),
    ):
        if values:
            yield f"\n{what}: {', '.join(values)}"
    refused = list(_refused(plugin))
    if refused:
        yield "\ndoes not work, with its default options, on:"
        yield from refused


def _refused(plugin: type[Plugin]) -> Iterator[str]:
    from pydantic import ValidationError

    from sae_plugins.framework.architectures import ARCHITECTURES

    try:
        options = plugin.Options()
    except ValidationError:  # an option without a default
        return
    reasons: dict[str, list[str]] = {}
    for row in ARCHITECTURES.values():
        reason = plugin.unsupported(row, options)
        if reason is not None:
            reasons.setdefault(reason, []).append(row.name)
    for reason, names in reasons.items():
        yield _wrap(f"{', '.join(names)}: {reason}", 2)


# -- methods -----------------------------------------------------------------------------------


def _method(method: type[Method]) -> Iterator[str]:
    from sae_plugins import recipes
    from sae_plugins.framework.registry import listing

    summaries = {entry.name: entry.summary for entry in listing()}
    yield "\nmechanisms (leave one out with --without NAME; `plugins show NAME` has its options):"
    column = max(map(len, method.mechanisms))
    for name in method.mechanisms:
        yield f"  {name:<{column}}  {summaries.get(name, '')}"
    options = {f"{m}.{n}": v for m, given in method.options.items() for n, v in given.items()}
    settings = {**options, **method.training, **method.sae_lens}
    yield "\nsettings (any flag overrides them):"
    yield from (f"  --{name} {rounded(value)}" for name, value in settings.items())
    if method.rows:
        yield "\nits tables, and the command for each row:"
        if method.name in recipes.names():
            yield f"  ({method.name}-demo runs anywhere, on another scale of coefficients)"
    table = ""
    for row in method.rows:
        if row.table != table:
            table = row.table
            yield f"\n  {table}"
        paper = f" (paper: {row.paper})" if row.paper else ""
        yield _wrap(f"{row.label}{paper}", 4)
        yield f"      {command(method.name, row.flags)}"


def command(method: str, row_flags: str) -> str:
    """The command that trains one row of a method's tables: the paper's run, where it has one."""
    from sae_plugins.recipes import names

    known = [recipe for recipe in (method, f"{method}-demo") if recipe in names()]
    chosen = f"--recipe {known[0]}" if known else f"--plugin {method}"
    return f"sae-plugins train {chosen} {row_flags}".strip()
