"""The documentation's picture of the rooms is the contract that `make lint` checks."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
LAYERS = [layer.split(" | ") for layer in CONTRACTS["contracts"][0]["layers"]]


def test_the_picture_shows_the_layers() -> None:
    picture = (ROOT / "docs" / "assets" / "rooms.svg").read_text("utf-8")
    shown = re.findall(r'y="(\d+)"[^>]*font-weight="600">(\w+)<', picture)
    rows = {y: sorted(name for its, name in shown if its == y) for y, _ in shown}
    assert [*rows.values()] == [sorted(layer) for layer in LAYERS]


def test_every_room_is_a_layer() -> None:
    """The contract is exhaustive about modules, and this says it of folders on disk."""
    folders = {path.parent.name for path in (ROOT / "sae_plugins").glob("*/__init__.py")}
    assert folders | {"testing"} == {room for layer in LAYERS for room in layer}


def test_files_named_on_the_page_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:sae_plugins|entrypoints|eval_suites)/[\w/.]*)`", page)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
