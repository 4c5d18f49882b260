"""docs/api.md lists what is stable, and nothing of it changes without a change of that page.

Whoever makes one of these tests fail on purpose raises the version in pyproject.toml, writes a note
into CHANGELOG.md, and then mends the page.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import sae_plugins
from sae_plugins import Method, Plugin, testing
from sae_plugins.base import errors
from sae_plugins.entrypoints.main import main
from sae_plugins.eval_suites import suite
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.cache import Cache
from sae_plugins.eval_suites.inputs.data import Data
from sae_plugins.eval_suites.inputs.models import LanguageModel
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.registry import GROUP as SUITES
from sae_plugins.framework import compared, hookspecs, plugin_files, registry
from sae_plugins.framework.features import Features
from sae_plugins.framework.host import EVENTS
from sae_plugins.framework.run import Run
from sae_plugins.runs import folder, journal

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")


def listed(heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading: words in code, by what is first in their row."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", row) for row in section.splitlines() if row.startswith("|")]
    return {row[0]: row[1:] for row in rows if row}


def public(owner: Any, *more: str) -> set[str]:
    names = {*vars(owner), *getattr(owner, "__annotations__", {})}
    return {name for name in names if not name.startswith("_")} | {*more}


def own(module: ModuleType) -> set[str]:
    """The public names of what a module defines."""
    constants = re.findall(r"^([A-Z_, ]+)=", inspect.getsource(module), re.M)
    names = re.findall(r"\b[A-Z_]+\b", " ".join(constants))
    names += [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    return {name for name in names if not name.startswith("_")}


def test_python_names() -> None:
    rows = {name: set(words) for name, words in listed("Python").items()}
    assert rows.pop("sae_plugins") == set(sae_plugins.__all__)
    assert rows.pop("sae_plugins.testing") == own(testing) | own(compared) | {"Witness"}
    assert rows.pop("Plugin") == public(Plugin, "transient")
    assert rows.pop("Method") == public(Method)
    assert rows.pop("run") == public(Run, "metrics", "summary", "updates", "updated", "number")
    of_the_framework = {"tracked", "check_held", "state_dict", "load_state_dict", "carry_out"}
    assert rows.pop("run.features") == public(Features, "d_sae") - of_the_framework
    assert rows == {}


def test_python_names_for_suites() -> None:
    rows = {name: set(words) for name, words in listed("Python, for suites").items()}
    assert rows.pop("sae_plugins.eval_suites.suite") == own(suite)
    assert rows.pop("sae_plugins.base.errors") == {errors.SuiteError.__name__}
    assert rows.pop("Suite") == public(suite.Suite)
    assert rows.pop("Metric") == public(suite.Metric) - {"numbers"}  # our tables call it
    for name in ("Cost", "Scores", "Sent"):
        assert rows.pop(name) == public(getattr(suite, name))
    assert rows.pop("Value") == {*suite.Value.model_fields}
    assert rows.pop("bench") == public(Bench)
    assert rows.pop("bench.model") == public(LanguageModel)
    of_labelled_texts = {
        "name",
        "revisions",
        "load",
        "collect",
        "fingerprint",
        "file",
        "path",
        "table",
    }  # as SAEBench's are read
    assert rows.pop("bench.data") == {
        name for name in public(Data) - of_labelled_texts if not name.startswith("lack_of_")
    }
    assert rows.pop("bench.cache") == public(Cache) - {"path"}  # its files are its own
    assert rows.pop("subject") == public(Subject)
    assert rows == {}


def test_events() -> None:
    events = {event: [*inspect.signature(getattr(hookspecs, event)).parameters] for event in EVENTS}
    assert listed("Events") == events


def test_options() -> None:
    entries = registry.installed().items()
    names = [name for name, (entry, *_) in entries if entry.distribution == "sae-plugins"]
    plugins = {name: registry.load(name) for name in names}
    options = {
        name: [*plugin.Options.model_fields]
        for name, plugin in plugins.items()
        if issubclass(plugin, Plugin)
    }
    assert listed("Options") == options | {
        name: [] for name, plugin in plugins.items() if issubclass(plugin, Method)
    }


def test_entry_point_groups() -> None:
    assert [*listed("Entry points")] == [registry.GROUP, SUITES]


def test_files() -> None:
    """All that a run writes, but for what SAELens adds and what is there for a while only."""
    of_saelens = {folder.RUNNER_CONFIG, folder.SYNTHETIC_RUNNER_CONFIG, "eval_stats.json"}
    of_saelens |= {"synthetic_model/"}
    written = (*folder._NAMED, folder.events(1), f"{plugin_files.FOLDER}/", journal.JOURNAL)
    names = [name.partition("/") for name in (*written, f"{folder.UNFINISHED}/")]
    assert {*listed("Files of a run")} == {first + slash for first, slash, _ in names} - of_saelens


def test_exit_codes() -> None:
    """Those that are written anywhere in a command, or in an error that ends one."""
    modules = [*Path(inspect.getfile(main)).parent.glob("*.py"), Path(inspect.getfile(errors))]
    nodes = [node for file in modules for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    returned = [node.value for node in nodes if isinstance(node, ast.Return)]
    returned += [value.body for value in returned if isinstance(value, ast.IfExp)]
    returned += [
        node.value
        for node in nodes
        if isinstance(node, ast.Assign) and "exit_code" in ast.unparse(node.targets[0])
    ]
    values = [value.value for value in returned if isinstance(value, ast.Constant)]
    codes = {str(value) for value in values if type(value) is int}
    assert {*listed("Exit codes")} == codes
    assert {*re.findall(r"(\d+):", main.__doc__ or "")} == codes
