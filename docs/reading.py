"""What the code says of itself, as pieces of Markdown, for `generate.py`."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from sae_plugins.entrypoints import fields as shown
from sae_plugins.eval_suites import registry as suite_registry
from sae_plugins.eval_suites.suite import Suite
from sae_plugins.framework import registry
from sae_plugins.framework.architectures import ARCHITECTURES
from sae_plugins.framework.plugin import Method, Plugin
from sae_plugins.framework.resolve import resolve

OURS = "sae-plugins"


def ours() -> dict[str, type[Plugin] | type[Method]]:
    """Our own plugins and methods by name."""
    found = registry.installed().items()
    return {name: registry.load(name) for name, (entry, *_) in found if entry.distribution == OURS}


def methods() -> dict[str, type[Method]]:
    """Our own methods by name."""
    return {name: method for name, method in ours().items() if issubclass(method, Method)}


def mechanisms() -> dict[str, type[Plugin]]:
    """Our own mechanisms by name."""
    return {name: plugin for name, plugin in ours().items() if issubclass(plugin, Plugin)}


def first_line(documented: Any) -> str:
    """The first line of a docstring."""
    return inspect.cleandoc(documented.__doc__ or "").partition("\n")[0]


def annotation(type_: Any) -> str:
    """A type as it is written."""
    return type_ if isinstance(type_, str) else getattr(type_, "__name__", str(type_))


def signature(function: Any, name: str = "") -> str:
    """How a function is called, in lines of at most 88 characters."""
    signature = inspect.signature(function)
    unquoted = signature.replace(
        parameters=[
            p.replace(annotation=_Bare(p.annotation)) for p in signature.parameters.values()
        ],
        return_annotation=_Bare(signature.return_annotation),
    )
    name = name or function.__name__
    line = f"def {name}{unquoted}"
    if len(line) <= 88:
        return line
    parameters = "".join(f"    {p},\n" for p in unquoted.parameters.values())
    return f"def {name}(\n{parameters}) -> {unquoted.return_annotation!r}"


class _Bare(str):
    """An annotation that prints itself without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def uses(plugin: str, event: str) -> bool:
    """Whether a mechanism implements an event."""
    return hasattr(getattr(mechanisms()[plugin], event, None), "sae_plugins_impl")


def described_attributes(documented: type) -> Iterator[list[str]]:
    """The attributes that a class's docstring lists, with what it says of them."""
    _, _, listed = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:\n")
    for entry in re.split(r"\n(?=\w)", textwrap.dedent(listed).strip()):
        name, _, text = " ".join(entry.split()).partition(": ")
        yield [code(name), text]


def members(
    owner: type, wanted: Callable[[Any], bool], prefix: str | None = None
) -> list[list[str]]:
    """The public members of a class that are wanted, in its order, with their first sentence."""
    rows = []
    for name, member in vars(owner).items():
        if wanted(member) and not name.startswith("_"):
            called = name if prefix is None else f"{prefix}{name}{_parameters(member)}"
            text = inspect.cleandoc(member.__doc__ or "").partition("\n\n")[0]
            rows.append([code(called), text])
    return rows


def _parameters(method: Callable[..., Any]) -> inspect.Signature:
    """What a method takes besides `self`, without types."""
    found = inspect.signature(method)
    bare = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return found.replace(parameters=bare[1:], return_annotation=found.empty)


def failure_messages(test: Any) -> Iterator[str]:
    """What the assertions of a test say; what they compute is shown as an ellipsis."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(test)))
    named = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        said: Any = None
        if isinstance(node, ast.Assert):
            said = node.msg
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            said = node.exc.args[0]
        if isinstance(said, ast.Name):
            said = named.get(said.id)
        if isinstance(said, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "..." for part in said.values
            )
        elif isinstance(said, ast.Constant):
            yield str(said.value)


def described(plugin: type[Plugin]) -> str:
    """A mechanism's module in a sentence, and where it is."""
    module = inspect.getmodule(plugin)
    assert module is not None
    return f"{first_line(module)} (`{module.__name__.replace('.', '/')}.py`)"


def option_table(plugin: type[Plugin], given: Mapping[str, Any]) -> Iterator[str]:
    """Every option of a plugin, with what a method sets where that is not the default."""
    fields = plugin.Options.model_fields
    here = {name: value for name, value in given.items() if value != fields[name].get_default()}
    columns = ["option", "symbol", "default", "values", *(["here"] if here else []), "meaning"]
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
    yield from table(columns, rows) if rows else ["No options."]


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


def default_and_bounds(field: Any) -> tuple[str, str]:
    """An option's default, and its type with its bounds."""
    default, _, bounds = shown.bounds(field).partition(", ")
    kind = shown.type_name(field.annotation)
    return code(default.removeprefix("default ")), ", ".join(filter(None, [kind, bounds]))


def value(values: Mapping[str, Any], key: str) -> str:
    """A setting, or nothing where it is not set."""
    return code(shown.rounded(values[key])) if key in values else ""


def written(setting: Any, default: Any) -> str:
    """A suite's setting; of the words that are the default only how many."""
    if isinstance(setting, tuple):
        words = [str(each) for each in setting]
        if setting == default and isinstance(setting[0], str):
            return f"all {len(words)}"
        return code(" ".join(words))
    return code(shown.rounded(setting))


def code(text: str) -> str:
    """As code; nothing stays nothing."""
    return f"`{text}`" if text else ""


def fenced(language: str, text: str) -> list[str]:
    """A block of code."""
    return [f"```{language}", *text.splitlines(), "```"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table."""
    head = list(head)
    for row in (head, ["---"] * len(head), *rows):
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        yield "| " + " | ".join(cells) + " |"


def numbers(lines: Iterable[str]) -> Iterator[str]:
    """Tables of numbers, which `assets/site.css` arranges on phones."""
    yield from ('<div class="numbers" markdown>', "", *lines, "", "</div>")
