"""`sae-plugins plugins new NAME`: a package with one mechanism, its entry point and its test."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from string import Template

from sae_plugins.base.errors import Problems, SaePluginsError
from sae_plugins.base.files import whole_folder
from sae_plugins.framework.registry import installed
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag

ABOUT = """\
Write a package with one mechanism to start from: its class with an option and an event, its entry
point, and the contract that holds it to what makes it work with others. It works as it is: install
it, run its test, and put your idea in the place of the example.
"""
FLAGS = {
    flag.name: flag
    for flag in (
        Flag("output_path", "str", "folder for the package; must not exist (default: sae-NAME)"),
    )
}

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "sae-$name"
version = "0.1"
description = "A plugin for sae-plugins."
dependencies = ["sae-plugins"]

[project.entry-points.sae_plugins]
$name = "$module:$cls"

[tool.setuptools]
py-modules = ["$module"]
"""
_MODULE = '''\
"""The mechanism $name: say here what it is for, and where it comes from (paper, equation)."""

import torch
from pydantic import Field
from sae_plugins import Plugin, hookimpl


def overlap(W_dec: torch.Tensor) -> torch.Tensor:
    """Mean squared cosine of each decoder row with all others.

    Args:
        W_dec: [d_sae, d_in].

    Returns:
        A scalar, which is 0 where all rows are orthogonal.
    """
    rows = torch.nn.functional.normalize(W_dec, dim=1)
    return ((rows.T @ rows).square().sum() - len(rows)) / len(rows)


class $cls(Plugin):
    """Push decoder rows apart: an example of a further term of the loss, to be replaced."""

    name = "$name"

    class Options(Plugin.Options):
        """How strong it is."""

        weight: float = Field(0.1, ge=0, description="weight of the penalty")

    @hookimpl
    def extra_losses(self, run):
        """Add the penalty; `metrics.jsonl` has it as losses/$name/overlap."""
        return {"overlap": self.options.weight * overlap(run.sae.W_dec)}
'''
_TEST = '''\
"""The contract holds the plugin to what makes it work with others; test what it is for, too."""

import torch
from sae_plugins.testing import PluginContract
from $module import $cls, overlap


class Test$cls(PluginContract):
    plugin = $cls


def test_orthogonal_rows_have_no_overlap():
    assert overlap(torch.eye(3)).item() == 0
'''


def new(line: Line, problems: Problems) -> int:
    """Write the package, whole or not at all, and say what comes next."""
    for name in line.operands:
        with problems:
            _check(name)
    problems.stop()
    (name,) = line.operands
    folder = Path(line.given.get("output_path") or f"sae-{name}").expanduser()
    module = _module(name)
    words = {"name": name, "module": module, "cls": "".join(map(str.title, name.split("-")))}
    files = {
        "pyproject.toml": _PYPROJECT,
        f"{module}.py": _MODULE,
        f"tests/test_{module}.py": _TEST,
    }
    busy = SaePluginsError(f"{folder} is being written by another process")
    try:
        with whole_folder(folder, busy, lambda: _check_free(folder)) as whole:
            (whole / "tests").mkdir()
            for path, text in files.items():
                (whole / path).write_text(Template(text).substitute(words), "utf-8")
    except OSError as error:
        raise SaePluginsError(f"{folder} cannot be written: {error.strerror}") from error
    print(f"{folder}/")
    print("\n".join(f"  {path}" for path in files))
    print(f"""
next:
  pip install --no-build-isolation -e {folder}
  pytest {folder}
  sae-plugins plugins show {name}
  sae-plugins train --recipe baseline-demo --plugin {name}""")
    return 0


def _check_free(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise SaePluginsError(f"{folder} is there already; choose another --output_path")


def _module(name: str) -> str:
    return f"sae_{name.replace('-', '_')}"


def _check(name: str) -> None:
    """Refuse a name that no plugin can have, or that something else has.

    Raises:
        SaePluginsError: it is one.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise SaePluginsError(
            f"{name!r} is no name for a plugin: give lower-case letters and digits, in words "
            "that hyphens join, such as decoder-decay"
        )
    if known := installed().get(name):
        raise SaePluginsError(
            f"there is a plugin {name!r} already, of {known[0].distribution}; choose another name"
        )
    if find_spec(_module(name)) is not None:
        raise SaePluginsError(
            f"there is a Python module {_module(name)!r} already; choose another name"
        )
