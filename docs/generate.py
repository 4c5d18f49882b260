"""Writes the generated parts of these pages from the code: `make docs`.

A part stands between `<!-- NAME: generated -->` and `<!-- end -->`. The first heading of a page
names its method.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

from sae_plugins import recipes
from sae_plugins.entrypoints import main as command_line
from sae_plugins.entrypoints import plugins
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.evaluate_suites import shortcuts_off
from sae_plugins.entrypoints.help import help_text
from sae_plugins.eval_suites import PRESETS
from sae_plugins.eval_suites.suite import Suite
from sae_plugins.framework import features, hookspecs, registry
from sae_plugins.framework.architectures import ARCHITECTURES, Architecture
from sae_plugins.framework.host import EVENTS
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.run import Run
from sae_plugins.testing import PluginContract

sys.path.insert(0, str(Path(__file__).parent))
from findings_page import TABLES
from reading import (
    added_by,
    annotation,
    chosen,
    code,
    described,
    described_attributes,
    disagreements,
    failure_messages,
    fenced,
    first_line,
    given,
    mechanisms,
    members,
    methods,
    numbers,
    option_table,
    refused,
    signature,
    suites,
    table,
    uses,
    value,
    written,
)
from smollm2_page import with_bos_and_without
from speed_page import CHART, chart, memory, times

FOLDER = Path(__file__).parent
BENCHMARKS = FOLDER.parent / "benchmarks" / "README.md"
END = "<!-- end -->"
PART = re.compile(rf"^(<!-- (\w+): generated -->)\n(?:(?!{END}$).*\n)*{END}$", re.M)
NO_FLAGS = ("description", "extends", "plugin")
"""Keys of a recipe that are no settings."""


def page(text: str) -> str:
    """The page with its generated parts written again."""
    heading = re.search(r"^# (.+)$", text, re.M)
    title = heading[1] if heading else ""

    def part(marked: re.Match[str]) -> str:
        contents = re.sub(r"\n{3,}", "\n\n", "\n".join(PARTS[marked[2]](title))).strip()
        return f"{marked[1]}\n\n{contents}\n\n{END}"

    return PART.sub(part, text)


# -- the parts ---------------------------------------------------------------------------------


def overview(_: str) -> Iterator[str]:
    """A line per method."""
    summaries = {entry.name: entry.summary for entry in registry.listing()}
    rows = [[f"[{name}]({name}.md)", summaries[name]] for name in methods()]
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
        yield described(plugin)
        yield ""
        yield from option_table(plugin, method.options.get(plugin.name, {}))
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
                    code(plugins.command(name, row.flags)),
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
            given = [written(getattr(preset, name), field.default) for preset in presets]
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
    head = ["suite", "preset", "tokens of the language model", "tokens of each SAE", "disk"]
    yield from numbers(table(head, rows))


def drawing(_: str) -> list[str]:
    """The training loop, from the docstring of hookspecs.py."""
    _, _, rest = inspect.cleandoc(hookspecs.__doc__ or "").partition("::\n\n")
    loop = re.match(r"(?: {4}.*\n|\n)+", rest)
    assert loop is not None
    return fenced("", textwrap.dedent(loop[0]).strip("\n"))


def events(_: str) -> Iterator[str]:
    """Every event: its sentence, its signature, and which of our mechanisms use it."""
    for name in EVENTS:
        spec = getattr(hookspecs, name)
        yield f"### {name}"
        yield ""
        yield first_line(spec)
        yield ""
        yield from fenced("py", signature(spec))  # of which only the head is shown
        yield ""
        users = [plugin for plugin in mechanisms() if uses(plugin, name)]
        if users:
            links = [f"[`{user}`](mechanisms.md#{user})" for user in users[:4]]
            more = f" and {len(users) - 4} more" if len(users) > 4 else ""
            yield f"Used by {', '.join(links)}{more}."
            yield ""


def run_view(_: str) -> Iterator[str]:
    """What `run` offers, then `run.features`."""
    yield from table(
        ["`run.`", "what it is"],
        [*described_attributes(Run), *members(Run, lambda member: isinstance(member, property))],
    )
    yield ""
    yield from table(["call", "what it does"], members(Run, inspect.isfunction, "run."))
    yield ""
    yield "Of the architecture, `run.architecture`, which `unsupported` is given, too:"
    yield ""
    yield from table(
        ["`run.architecture.`", "what it is"],
        [
            *described_attributes(Architecture),
            *members(Architecture, lambda member: isinstance(member, property)),
        ],
    )
    yield ""
    yield from table(
        ["architecture", "`sparsity_coefficient`", "`weighs_tokens`"],
        [
            [code(row.name), repr(row.sparsity_coefficient), repr(row.weighs_tokens)]
            for row in ARCHITECTURES.values()
        ],
    )
    yield ""
    yield "Of the feature axis, `run.features`:"
    yield ""
    calls = members(features.Features, inspect.isfunction, "run.features.")
    inner = ("tracked", "state_dict", "load_state_dict", "carry_out")
    names = tuple(f"`run.features.{name}(" for name in inner)
    yield from table(["call", "what it does"], [r for r in calls if not r[0].startswith(names)])


def class_attributes(_: str) -> Iterator[str]:
    """What a plugin's class says about it."""
    yield from table(["attribute", "what it is"], described_attributes(Plugin))


def event_values(_: str) -> Iterator[str]:
    """The fields of what events are given besides `run`."""
    changes = (features.Permuted, features.Reset, features.Merged)
    for said, kinds in (
        ("`step_input`", (TrainStepInput,)),
        ("`output`", (TrainStepOutput,)),
        ("`change`", changes),
    ):
        for kind in kinds:
            fields = {field.name: field.type for field in dataclasses.fields(kind)}
            listed = ", ".join(f"`{name}: {annotation(type_)}`" for name, type_ in fields.items())
            text = f" {first_line(kind)}" if kind in changes else ""
            owner = "" if kind in changes else "SAELens' "
            yield f"- {said} is {owner}`{kind.__name__}`, with {listed}.{text}"


def mechanism_pages(_: str) -> Iterator[str]:
    """Every mechanism: what it does, what it needs and refuses, its options."""
    for name, plugin in mechanisms().items():
        yield f"## {name}"
        yield ""
        yield inspect.cleandoc(plugin.__doc__ or "").partition("\n\n")[0]
        yield f"(`{plugin.__module__.replace('.', '/')}.py`)"
        yield ""
        for what, values in (
            ("Brings along", plugin.requires),
            ("Cannot be combined with", plugin.conflicts),
        ):
            if values:
                yield f"{what} {', '.join(f'[`{value}`](#{value})' for value in values)}."
        if plugin.claims:
            yield f"Claims {', '.join(map(code, plugin.claims))} for itself."
        with suppress(ValueError):  # an option without a default
            if reasons := refused(plugin, plugin.Options()):
                yield f"Does not work, with its default options, on {reasons}."
        yield ""
        yield from option_table(plugin, {})
        yield ""
        if plugin.meanings:
            yield f"What it logs and summarises, as `{name}/...`:"
            yield ""
            yield from table(["name", "is"], [[code(n), m] for n, m in plugin.meanings.items()])
            yield ""


def recipe_list(_: str) -> Iterator[str]:
    """The packaged recipes, and the essentials of the run that each describes."""
    rows = []
    for name in recipes.names():
        recipe = recipes.load(name)
        model = recipe.get("model_name", "the embedded world")
        plugins = ", ".join(map(code, recipe.get("plugin", ()))) or "none"
        tokens = f"{recipe['training_tokens']:,}"
        rows.append([code(name), model, plugins, tokens, recipe["description"]])
    yield from table(["recipe", "model", "plugins", "tokens", "what it is"], rows)


def command_reference(_: str) -> Iterator[str]:
    """What every command says to `--help`."""
    for command in commands(command_line.root()):
        yield f"## {f'sae-plugins {command.name}'.strip()}"
        yield ""
        yield from fenced("", help_text(command, 96))
        yield ""


def slurm_script(name: str) -> list[str]:
    """A script for `sbatch`, as it lies beside the pages."""
    return fenced("sh", (FOLDER / "slurm" / f"{name}.sh").read_text("utf-8").rstrip())


def contract_tests(_: str) -> Iterator[str]:
    """Every test of the contract: what it checks, and what it says where that fails."""
    for name, test in vars(PluginContract).items():
        if name.startswith("test_"):
            yield f"### {name}"
            yield ""
            yield " ".join(inspect.cleandoc(test.__doc__ or "").split())
            yield ""
            said = list(failure_messages(test))
            if said:
                yield "A failure says:"
                yield ""
                yield from (f"- {message}" for message in said)
                yield ""


PARTS = {
    "attributes": class_attributes,
    **TABLES,
    "commands": command_reference,
    "contract": contract_tests,
    "bos": with_bos_and_without,
    "drawing": drawing,
    "event_values": event_values,
    "events": events,
    "mechanisms": mechanism_pages,
    "recipes": recipe_list,
    "run_view": run_view,
    **{
        script.stem.replace("-", "_"): lambda _, name=script.stem: slurm_script(name)
        for script in sorted((FOLDER / "slurm").glob("*.sh"))
    },
    "speed": times,
    "speed_memory": memory,
    "suite_metrics": suite_metrics,
    "suite_settings": suite_settings,
    "suite_costs": suite_costs,
    "methods": overview,
    "settings": settings,
    "options": options,
    "tables": tables,
    "composition": composition,
}


def commands(command: Command) -> Iterator[Command]:
    """A command, and all below it."""
    yield command
    for below in command.actions:
        whole = command_line.loaded(below.name) if below.name in command_line.COMMANDS else below
        yield from commands(whole)


def main() -> int:
    """Write every page below this folder again, that of the benchmarks, and the chart."""
    made = dict.fromkeys((*sorted(FOLDER.rglob("*.md")), BENCHMARKS), page)
    for file, make in {**made, CHART: lambda _: chart()}.items():
        text = file.read_text("utf-8") if file.exists() else ""
        if (written := make(text)) != text:
            file.write_text(written, "utf-8")
            print(f"{file.relative_to(FOLDER.parent)}: written again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
