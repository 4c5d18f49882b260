"""Writes the generated parts of these pages from the code: `make docs`.

A part stands between `<!-- NAME: generated -->` and `<!-- end -->`. The first heading of a page
names its method.
"""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae_plugins import recipes, registry
from sae_plugins.architectures import ARCHITECTURES
from sae_plugins.entrypoints import plugins as shown
from sae_plugins.entrypoints.evaluate import shortcuts_off
from sae_plugins.eval_suites import registry as suite_registry
from sae_plugins.eval_suites.suite import PRESETS, Suite
from sae_plugins.plugin import Method, Plugin
from sae_plugins.resolve import resolve

FOLDER = Path(__file__).parent
END = "<!-- end -->"
PART = re.compile(rf"^(<!-- (\w+): generated -->)\n(?:(?!{END}$).*\n)*{END}$", re.M)
NO_FLAGS = ("description", "extends", "plugin")
"""Keys of a recipe that are no settings."""


def page(text: str) -> str:
    """The page with its generated parts written anew."""
    heading = re.search(r"^# (.+)$", text, re.M)
    title = heading[1] if heading else ""

    def part(marked: re.Match[str]) -> str:
        contents = "\n".join(PARTS[marked[2]](title)).strip()
        return f"{marked[1]}\n\n{contents}\n\n{END}"

    return PART.sub(part, text)


def methods() -> dict[str, type[Method]]:
    """Our own methods by name."""
    ours = [
        name for name, (entry, *_) in registry.installed().items() if entry.distribution == OURS
    ]
    loaded = {name: registry.load(name) for name in ours}
    return {name: method for name, method in loaded.items() if issubclass(method, Method)}


OURS = "sae-plugins"


# -- the parts ---------------------------------------------------------------------------------


def overview(_: str) -> Iterator[str]:
    """A line per method."""
    summaries = {entry.name: entry.summary for entry in registry.listing()}
    rows = [[f"[{name}](methods/{name}.md)", summaries[name]] for name in methods()]
    return table(["page", "the method"], rows)


def settings(name: str) -> Iterator[str]:
    """Mechanisms, and every flag that the method or one of its recipes sets."""
    method = methods()[name]
    summaries = {entry.name: entry.summary for entry in registry.listing()}
    yield "Its mechanisms, each of which `--without NAME` leaves out:"
    yield ""
    for mechanism in method.mechanisms:
        yield f"- [`{mechanism}`](#{mechanism}): {summaries[mechanism]}"
    needed = [f"`{p.name}`" for p, _ in chosen(method) if p.name not in method.mechanisms]
    if needed:
        yield ""
        yield f"Added because these need them: {', '.join(needed)}."
    columns = {"method": {**given(method), **method.training, **method.sae_lens}}
    for recipe in (name, f"{name}-demo"):
        if recipe in recipes.names():
            columns[f"`--recipe {recipe}`"] = recipes.load(recipe)
    flags = dict.fromkeys(f for values in columns.values() for f in values if f not in NO_FLAGS)
    yield ""
    yield "What the method sets, and what its recipes set over it:"
    yield ""
    yield from table(
        ["flag", *columns],
        [[code(f"--{flag}"), *(value(v, flag) for v in columns.values())] for flag in flags],
    )


def options(name: str) -> Iterator[str]:
    """Every option of the method's mechanisms, and of those that rows add."""
    method = methods()[name]
    own = [plugin for plugin, _ in chosen(method)]
    added = [registry.load(other) for row in method.rows for other in added_by(row.flags)]
    for plugin in dict.fromkeys([*own, *(p for p in added if issubclass(p, Plugin))]):
        yield f"#### {plugin.name}"
        yield ""
        if plugin not in own:
            yield "Not in the method; rows below add it."
        module = inspect.getmodule(plugin)
        assert module is not None
        file = f"../../{module.__name__.replace('.', '/')}.py"
        yield f"[{inspect.cleandoc(module.__doc__ or '').splitlines()[0]}]({file})"
        yield ""
        fields = plugin.Options.model_fields
        here = {
            option: setting
            for option, setting in method.options.get(plugin.name, {}).items()
            if setting != fields[option].get_default()
        }
        if fields:
            last = ["here", "meaning"] if here else ["meaning"]
            rows = [
                [
                    code(f"--{plugin.name}.{option}"),
                    code(field.title or ""),
                    *default_and_bounds(field),
                    *([value(here, option)] if here else []),
                    field.description or "",
                ]
                for option, field in fields.items()
            ]
            yield from table(["option", "symbol", "default", "values", *last], rows)
        else:
            yield "No options."
        yield ""


def tables(name: str) -> Iterator[str]:
    """The rows of the paper's tables, each with its command."""
    method = methods()[name]
    for title, group in groupby(method.rows, lambda row: row.table):
        rows = list(group)
        paper = any(row.paper for row in rows)
        yield f"**{title}**"
        yield ""
        yield from table(
            ["row", *(["the paper's"] if paper else []), "command"],
            [
                [
                    row.label,
                    *([row.paper] if paper else []),
                    code(shown.command(name, row.flags)),
                ]
                for row in rows
            ],
        )
        yield ""


def composition(name: str) -> Iterator[str]:
    """What the mechanisms refuse, and on which settings methods disagree."""
    method = methods()[name]
    yield "What each mechanism claims for itself, and where it refuses to work:"
    yield ""
    rows = [
        [code(plugin.name), ", ".join(map(code, plugin.claims)), refused(plugin, its_options)]
        for plugin, its_options in chosen(method)
    ]
    yield from table(["mechanism", "claims", "does not work on"], rows)
    yield ""
    yield "With another method, give the settings on which the two disagree:"
    yield ""
    for other in methods().values():
        if other is not method:
            yield f"- `{other.name}`: {'; '.join(disagreements(method, other)) or 'none'}."


def suite_metrics(_: str) -> Iterator[str]:
    """What every suite reports, from the name in papers to what it means."""
    for suite in suites():
        yield f"### {suite.name}"
        yield ""
        yield inspect.cleandoc(type(suite).__doc__ or "").splitlines()[0]
        if suite.item != Suite.item:
            yield f"By {suite.item} in `details.csv`."
        yield ""
        rows = [
            [
                f"**{metric.paper}**" if metric.headline else metric.paper,
                code(metric.name),
                metric.better,
                metric.meaning,
            ]
            for metric in suite.metrics
        ]
        yield from table(["in papers", "field", "better", "what it is"], rows)
        yield ""


def suite_settings(_: str) -> Iterator[str]:
    """Every setting of every suite, with its value in each preset."""
    for suite in suites():
        names = [preset for preset in PRESETS if preset == PRESETS[0] or preset in suite.presets]
        presets = [suite.settings(preset, {}) for preset in names]
        rows = []
        for name, field in suite.Settings.model_fields.items():
            given = [written(getattr(preset, name)) for preset in presets]
            changed = [now if now != given[0] else "" for now in given[1:]]
            off = " (a shortcut: `--exact` switches it off)" if name in shortcuts_off(suite) else ""
            rows.append(
                [code(f"--{suite.name}.{name}"), given[0], *changed, f"{field.description}{off}"]
            )
        yield f"**{suite.name}**"
        yield ""
        yield from table(["setting", *names, "meaning"], rows)
        yield ""


def suite_costs(_: str) -> Iterator[str]:
    """About what an evaluation of a Gemma-2-2B SAE takes, by suite and preset."""
    subject: Any = SimpleNamespace(model_name="gemma-2-2b", d_in=2304, d_sae=16384)
    rows = []
    for suite in suites():
        if suite.needs_model:
            for preset in ("canonical", "quick"):
                cost = suite.cost(subject, suite.settings(preset, {}))
                counts = [f"{n / 1e6:.1f} M" for n in (cost.llm_tokens, cost.sae_tokens)]
                rows.append([suite.name, preset, *counts, f"{cost.disk / 1e9:.1f} GB"])
    yield from table(
        ["suite", "preset", "tokens of the language model", "tokens of each SAE", "disk"], rows
    )


PARTS = {
    "suite_metrics": suite_metrics,
    "suite_settings": suite_settings,
    "suite_costs": suite_costs,
    "methods": overview,
    "settings": settings,
    "options": options,
    "tables": tables,
    "composition": composition,
}


# -- what the methods say ----------------------------------------------------------------------


def suites() -> list[Suite]:
    """Our own evaluation suites; core comes first."""
    names = sorted(suite_registry.built_in(), key=lambda name: (name != "core", name))
    return [suite_registry.load(name) for name in names]


def chosen(method: type[Method]) -> list[tuple[type[Plugin], Any]]:
    """The plugins that the method comes down to, with their options."""
    return list(resolve([method.name]).plugins)


def given(method: type[Method]) -> dict[str, Any]:
    """The method's options by flag."""
    return {f"{m}.{o}": v for m, options in method.options.items() for o, v in options.items()}


def added_by(flags: str) -> list[str]:
    """The plugins that a row's flags choose."""
    words = shlex.split(flags)
    return [name for word, name in pairwise(words) if word == "--plugin"]


def refused(plugin: type[Plugin], its_options: Any) -> str:
    """The architectures on which a plugin does not work, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in ARCHITECTURES.values():
        reason = plugin.unsupported(row, its_options)
        if reason is not None:
            reasons.setdefault(reason, []).append(code(row.name))
    return "<br>".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


def disagreements(method: type[Method], other: type[Method]) -> Iterator[str]:
    """Settings that both methods set, to different values."""
    pairs = (
        (given(method), given(other)),
        (method.training, other.training),
        (method.sae_lens, other.sae_lens),
    )
    for ours, theirs in pairs:
        for flag in ours:
            if flag in theirs and ours[flag] != theirs[flag]:
                yield f"`--{flag}` ({value(ours, flag)} here, {value(theirs, flag)} there)"


# -- how it is written -------------------------------------------------------------------------


def default_and_bounds(field: Any) -> tuple[str, str]:
    """An option's default, and its type with its bounds."""
    default, _, bounds = shown.bounds(field).partition(", ")
    kind = shown.type_name(field.annotation)
    return code(default.removeprefix("default ")), ", ".join(filter(None, [kind, bounds]))


def value(values: Mapping[str, Any], key: str) -> str:
    """A setting, or nothing where it is not set."""
    return code(shown.rounded(values[key])) if key in values else ""


def written(setting: Any) -> str:
    """A suite's setting; of many words only how many."""
    if isinstance(setting, tuple):
        words = [str(each) for each in setting]
        return f"all {len(words)}" if isinstance(setting[0], str) else code(" ".join(words))
    return code(shown.rounded(setting))


def code(text: str) -> str:
    """As code; nothing stays nothing."""
    return f"`{text}`" if text else ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table."""
    head = list(head)
    for row in (head, ["---"] * len(head), *rows):
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        yield "| " + " | ".join(cells) + " |"


def main() -> int:
    """Write every page below this folder anew."""
    for file in sorted(FOLDER.rglob("*.md")):
        text = file.read_text("utf-8")
        if (written := page(text)) != text:
            file.write_text(written, "utf-8")
            print(f"{file.relative_to(FOLDER.parent)}: written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
