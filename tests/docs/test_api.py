"""docs/api.md lists what is stable, and nothing of it changes without a change of that page.

Whoever makes one of these tests fail on purpose raises the version in pyproject.toml, writes a note
into CHANGELOG.md, and then mends the page.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import sae_plugins
from sae_plugins import Method, Plugin, testing
from sae_plugins.eval_suites.registry import GROUP as SUITES
from sae_plugins.eval_suites.suite import Suite
from sae_plugins.framework import hookspecs, registry
from sae_plugins.framework.features import Features
from sae_plugins.framework.host import EVENTS
from sae_plugins.framework.run import Run
from sae_plugins.runs import folder

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")


def listed(heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading: words in code, by what is first in their row."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", row) for row in section.splitlines() if row.startswith("|")]
    return {row[0]: row[1:] for row in rows if row}


def public(owner: Any, *more: str) -> set[str]:
    names = {*vars(owner), *getattr(owner, "__annotations__", {})}
    return {name for name in names if not name.startswith("_")} | {*more}


def test_python_names() -> None:
    rows = {name: set(words) for name, words in listed("Python").items()}
    source = inspect.getsource(testing)
    constants = re.findall(r"\b[A-Z_]+\b", " ".join(re.findall(r"^([A-Z_, ]+)=", source, re.M)))
    own = [n for n, v in vars(testing).items() if getattr(v, "__module__", "") == testing.__name__]
    ours = {name for name in (*constants, *own) if not name.startswith("_")}
    assert rows.pop("sae_plugins") == set(sae_plugins.__all__)
    assert rows.pop("sae_plugins.testing") == ours
    assert rows.pop("Plugin") == public(Plugin, "transient")
    assert rows.pop("Method") == public(Method)
    assert rows.pop("run") == public(Run, "metrics", "summary", "updates", "updated") - {"number"}
    inner = {"tracked", "state_dict", "load_state_dict", "carry_out"}
    assert rows.pop("run.features") == public(Features, "d_sae") - inner
    assert rows.pop("Suite") == public(Suite)
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


@pytest.mark.parametrize("constant", ["WEIGHTS", "SPARSITY", "METRICS", "CONFIG", "RECIPE"])
def test_files(constant: str) -> None:
    assert getattr(folder, constant) in listed("Files of a run")
