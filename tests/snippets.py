"""The code in README and docs: its blocks, and the packages that they teach to write, installed."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import contracts
import pytest

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints import evaluate_flags, evaluate_suites, study, upload
from sae_plugins.entrypoints.main import main
from sae_plugins.framework import registry
from sae_plugins.settings.command_line import parse
from sae_plugins.settings.settle import settle
from sae_plugins.study import spec as studies

ROOT = Path(__file__).parents[1]
DOCS, README = ROOT / "docs", ROOT / "README.md"


def blocks(language: str, *files: Path) -> list[str]:
    """The blocks of a language in these pages."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.M | re.S)
    return [block for file in files for block in fence.findall(file.read_text("utf-8"))]


def block(language: str, holding: str, file: Path) -> str:
    """The one block of a page that holds these words."""
    (only,) = [each for each in blocks(language, file) if holding in each]
    return only


def commands(text: str) -> Iterator[list[str]]:
    """The commands in bash blocks and in code, as words."""
    for lines in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S):
        for line in lines.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words
    for line in re.findall(r"`(sae-plugins [^`]+)`", text):
        yield shlex.split(line)


def check(words: list[str]) -> None:
    """Raise if a command is not one that works.

    Raises:
        PluginError: what it names does not exist, or does not fit together.
        SaePluginsError: it is wrong, or not known here.
    """
    match words:
        case ["sae-plugins", *_, "--help"]:
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                assert main(words[1:]) == 0
        case ["sae-plugins", "plugins", "list"]:
            pass
        case ["sae-plugins", "train", *arguments]:
            given = parse(arguments)
            if "resume" not in given:  # which needs the run's folder
                settle(given)
        case ["sae-plugins", "evaluate", *arguments]:
            if arguments:
                sources, given, settings = evaluate_flags.parse(arguments)
                assert sources or given.get("list"), "it names no SAE"
                names = evaluate_suites.chosen_suites(given, settings)
                evaluate_suites.with_settings(
                    names, given.get("preset") or "quick", bool(given.get("exact")), settings
                )
        case ["sae-plugins", "plugins", "show", plugin]:
            if plugin != plugin.upper():  # NAME
                registry.load(plugin)
        case ["sae-plugins", "study", *arguments]:
            words = " ".join(arguments).split(" > ")[0].split()
            if words:
                parsed = study._parser().parse_args(words)
                if not getattr(parsed, "study", "X.yaml").endswith((".yaml", "STUDY", "NAME")):
                    studies.load(parsed.study)
        case ["sae-plugins", "upload", *arguments]:
            if arguments:
                upload._names(upload.parser_of_upload().parse_intermixed_args(arguments).names)
        case ["make", target, *_]:
            if not re.search(rf"^{target}\b.*:", (ROOT / "Makefile").read_text("utf-8"), re.M):
                raise SaePluginsError(f"the Makefile has no target {target}")
        case ["python", file, *_] if (ROOT / file).is_file():
            pass
        case [".", ".venv/bin/activate"] | ["pytest", *_] | ["pip", "install", *_]:
            pass
        case _:
            raise SaePluginsError(f"{' '.join(words)} is not known to this test")


def package(folder: Path, module: str, project: str, name: str) -> Path:
    """Where a package of one module is installed, which is written into `folder`."""
    source = folder / "package"
    for left in ("runs/demo", "evaluations"):  # by an earlier trial in the same folder
        (source / left).mkdir(parents=True)
    (source / f"{name}.py").write_text(module)
    (source / "pyproject.toml").write_text(project)
    return installed(source, folder / "site")


def installed(package: Path, site: Path) -> Path:
    """`site`, a folder into which a package's source or wheel is installed, and nothing else."""
    install = [sys.executable, "-m", "uv", "--quiet", "pip", "install", "--no-deps"]
    where = ["--no-build-isolation", "--target", str(site)]
    subprocess.run([*install, *where, str(package)], check=True)
    return site


def passes(text: str, test: Path, every: bool) -> bool:
    """Whether the tests in `text` pass, as a file of their own; `every` as for `all_pass`."""
    test.write_text(text)
    return all_pass(test, every)


def all_pass(place: Path, every: bool) -> bool:
    """Whether the tests of a file or folder pass, in this process but without our settings.

    Args:
        place: their file or folder.
        every: whether contracts run on every architecture, or on two a promise as ours do.
    """
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null"]
    chosen = [] if every else ["-m", "not combinations"]
    folder = place if place.is_dir() else place.parent
    command = [*options, *chosen, "--rootdir", str(folder), str(place)]
    return pytest.main(command, plugins=[contracts]) == 0


on_two_and_on_every_architecture = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.combinations)]
)
