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

from sae_plugins import recipes
from sae_plugins.base.errors import Problems, SaePluginsError
from sae_plugins.entrypoints import evaluate_suites, upload
from sae_plugins.entrypoints.main import found, main
from sae_plugins.entrypoints.study_engine import engine_of
from sae_plugins.framework import plugin_files, registry
from sae_plugins.settings.command_line import parse
from sae_plugins.settings.settle import settle
from sae_plugins.study import files as studies

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
        SaePluginsError: it is wrong, or not known here.
    """
    match words:
        case ["sae-plugins", "COMMAND", "--help"]:
            pass
        case ["sae-plugins", *_, "--help"]:
            with contextlib.redirect_stdout(io.StringIO()):
                assert main(words[1:]) == 0
        case ["sae-plugins", *arguments]:
            check_line(" ".join(arguments).split(" > ")[0].split())
        case ["torchrun" | "timeout", *rest] if "sae-plugins" in rest:
            check(rest[rest.index("sae-plugins") :])
        case ["make", target, *_]:
            if not re.search(rf"^{target}\b.*:", (ROOT / "Makefile").read_text("utf-8"), re.M):
                raise SaePluginsError(f"the Makefile has no target {target}")
        case ["python", file, *_] if (ROOT / file).is_file():
            pass
        case ["eval", line] if line.startswith("$(sae-plugins "):
            check(shlex.split(line[2:-1]))
        case [".", ".venv/bin/activate"] | ["pytest", *_] | ["pip", "install", *_]:
            pass
        case ["tensorboard", *_]:
            pass
        case _:
            raise SaePluginsError(f"{' '.join(words)} is not known to this test")


def check_line(words: list[str]) -> None:
    """Raise if a line of `sae-plugins` is wrong, as far as that shows before anything runs."""
    command, rest = found(words)
    problems = Problems()
    line = parse(rest, command.flags(), problems, operands=bool(command.operand))
    if command.name == "train" and "resume" not in line.given:  # which needs the run's folder
        settle({**line.given, **line.options}, unknown=line.unknown, problems=problems)
    elif command.name == "evaluate" and rest:
        assert line.operands or line.given.get("list"), "it names no SAE"
        names = evaluate_suites.chosen_suites(line, problems)
        preset, exact = line.given.get("preset") or "quick", bool(line.given.get("exact"))
        evaluate_suites.with_settings(names, preset, exact, line.options, problems)
    elif command.name == "study run":
        engine_of(line, command.flags(), problems)
    elif command.name == "upload" and rest:
        upload._names(line.operands, problems)
    elif command.name == "plugins show" and line.operands != ["NAME"]:
        name = line.operands[0]
        plugin_files.load(name) if registry.names_file(name) else registry.load(name)
    elif command.name == "recipes show" and line.operands != ["NAME"]:
        recipes.load(*line.operands)
    elif command.operand == "STUDY" and not line.operands[0].endswith((".yaml", "STUDY", "NAME")):
        studies.load(*line.operands)
    if not command.owners:
        assert not line.unknown, f"there is no flag {line.unknown}"
        assert not line.options
    problems.stop()


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
    ours = ("cacheprovider", "xdist", "anyio", "jaxtyping", "typeguard")
    options = ["-q", *(f"-pno:{name}" for name in ours), "-c", "/dev/null"]
    options += ["--import-mode=importlib"]  # files of one name are tests of their own
    chosen = [] if every else ["-m", "not combinations"]
    folder = place if place.is_dir() else place.parent
    command = [*options, *chosen, "--rootdir", str(folder), str(place)]
    return pytest.main(command, plugins=[contracts]) == 0


on_two_and_on_every_architecture = pytest.mark.parametrize(
    "every",
    [
        pytest.param(False, marks=pytest.mark.ci),
        pytest.param(True, marks=[pytest.mark.slow, pytest.mark.combinations]),
    ],
)
