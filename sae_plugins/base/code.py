"""Which code can change a result, as a hash of what each file means.

Of `sae_plugins`, these are whole rooms. Of a plugin, they are its module and all that this imports
of its own: of the same package, of the same distribution, or, where that is no installed copy, of
the folder in which the package lies. Imports are read from the text, so that nothing is run; what
is imported by a computed name is not seen. Comments, docstrings and layout mean nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from sae_plugins.base.files import versions
from sae_plugins.base.fingerprints import Remembered, hash_of

TRAINING = (
    *("framework/**/*.py", "runs/**/*.py"),
    *("resume/stream.py", "resume/mixing.py"),
    *("base/saelens.py", "base/seeds.py", "base/patches.py"),
)
"""What trains, besides the plugins."""
EVALUATING = (
    *("eval_suites/*.py", "eval_suites/inputs/**/*.py", "eval_suites/saebench/**/*.py"),
    *("base/seeds.py", "base/patches.py"),
)
"""What computes what evaluations keep of a language model."""
WORLD = ("world/*.py", "world/data/**/*")
SYNTHETIC_MODELS = ("world/synthetic_models.py",)
CHANGE_NOTHING = (
    *("framework/beside.py", "framework/profile.py", "framework/registry.py"),
    *("framework/plugin_files.py", "framework/unused.py"),
    *(f"runs/{name}.py" for name in ("checks", "figures", "folder", "journal", "load", "logs")),
    *(f"runs/{name}.py" for name in ("downloads", "places", "probe", "recipe_file", "recorder")),
    *(f"runs/{name}.py" for name in ("dashboards", "feature_history", "run_folder", "untouched")),
    *(f"runs/{name}.py" for name in ("follower", "machine", "silent", "sources")),
    *("framework/compared.py", "framework/forked.py", "framework/two_ranks.py"),
    *("runs/weights_and_biases.py", "eval_suites/registry.py"),
)
"""Files of these rooms that only find, check, keep or show."""
_ROOT = Path(__file__).parents[1]
_OURS = "sae_plugins"
_KIND = "meaning 1"
"""Of what is remembered; another one whenever `_understood` is changed."""


def code(patterns: Iterable[str], classes: Iterable[type] = ()) -> dict[str, str | None]:
    """A hash of what each file means, by its name; None where no text can be read.

    It is computed once in a process, since what a process has imported stays what it was.

    Args:
        patterns: of files of `sae_plugins`.
        classes: plugins or suites, whose own files count, too.
    """
    return _code(tuple(patterns), tuple(classes))


@cache
def _code(patterns: tuple[str, ...], classes: tuple[type, ...]) -> dict[str, str | None]:
    found: dict[str, str | None] = dict(_of_rooms(patterns))
    for each in classes:
        found |= _of_class(each)
    return dict(sorted(found.items()))


@cache
def _of_rooms(patterns: tuple[str, ...]) -> dict[str, str | None]:
    files = {file for pattern in patterns for file in _ROOT.glob(pattern) if file.is_file()}
    names = {file.relative_to(_ROOT).as_posix(): file for file in files}
    with Remembered(_KIND, _ROOT, _understood) as known:
        return {
            name: known.of(file)["meaning"]
            for name, file in names.items()
            if name not in CHANGE_NOTHING and file.parent.name != "__pycache__"
        }


@cache
def _of_class(plugin: type) -> dict[str, str | None]:
    """The files of a class and of those above it that extend ours."""
    found: dict[str, str | None] = {}
    for each in plugin.__mro__:
        if not any(above.__module__.split(".")[0] == _OURS for above in each.__mro__[1:]):
            continue
        module = sys.modules.get(each.__module__)
        file, loader = (getattr(module, name, None) for name in ("__file__", "__loader__"))
        if isinstance(loader, LoadedOnce):  # its files may say something else by now
            found |= {own.path: own.meaning for own in loader.own.values()}
            for name, place in loader.elsewhere.items():
                found |= _closure(name, place)
            continue
        files: dict[str, str | None] = {}
        if file is not None and each.__module__ != "__main__":
            files = _closure(each.__module__, Path(file))
        # of a script, a notebook or an archive, the class alone
        found |= files or {f"{each.__qualname__} of {each.__module__}": _of_text(each)}
    return found


def _of_text(each: type) -> str | None:
    try:
        return _meaning(ast.parse(textwrap.dedent(inspect.getsource(each))))
    except (OSError, TypeError, SyntaxError):
        return None


# -- what a module imports of its own --------------------------------------------------------------


@dataclass(frozen=True)
class OwnModule:
    """A module that counts as a plugin's own.

    Attributes:
        name: of the module, below the folder in which all of them lie.
        path: of its file in that folder.
        file: the file.
        meaning: a hash of what it means.
        imports: the names of modules that its import statements may mean.
        text: what the file said, where it was read to be run.
    """

    name: str
    path: str
    file: Path
    meaning: str
    imports: frozenset[str]
    text: bytes = b""


@dataclass(frozen=True)
class LoadedOnce:
    """What imports modules from texts that were read before: what they mean is known since then.

    Attributes:
        own: the modules by name.
        elsewhere: the files of modules that these import and that are no installed package's, as
            of a folder in PYTHONPATH, by name.
    """

    own: Mapping[str, OwnModule]
    elsewhere: Mapping[str, Path]


def _closure(name: str, file: Path) -> dict[str, str | None]:
    return {own.path: own.meaning for own in own_modules(name, file)}


def own_modules(name: str, file: Path) -> Iterator[OwnModule]:
    """A module and all of its own that it imports, and that these import; nothing is run."""
    place = file.parent if file.name == "__init__.py" else file.with_suffix("")
    parts = name.split(".")
    if place.parts[-len(parts) :] != tuple(parts):  # it was loaded by its path
        parts = [place.name]
    name, root = ".".join(parts), place.parents[len(parts) - 1]
    shown = _ROOT if name.startswith(f"{_OURS}.") else root
    with Remembered(_KIND, shown, _understood) as known:
        yield from _followed(name, _source(name, root), root, shown, known.of)


def read_modules(file: Path) -> Iterator[OwnModule]:
    """A file and all modules of its folder that it imports, with their texts, which are read now.

    Raises:
        OSError: one cannot be read.
    """
    return _followed(file.stem, file, file.parent, file.parent, _read)


def modules_elsewhere(imports: Iterable[str]) -> dict[str, Path]:
    """The files of imported modules that belong neither to Python nor to an installed package."""
    found: dict[str, Path | None] = {}
    roots: dict[str, Path | None] = {}
    for name in imports:
        top = name.partition(".")[0]
        if top not in roots:
            roots[top] = _root_elsewhere(top)
        root = roots[top]
        found[name] = None if root is None else _source(name, root)
    return {name: file for name, file in sorted(found.items()) if file is not None}


def _root_elsewhere(top: str) -> Path | None:
    """The folder in which such a module or package lies; None where it is installed."""
    if top in sys.stdlib_module_names or versions([top.replace("_", "-")]):
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # the latter of a module without a spec
        return None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None
    root = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)]))).parent
    installed = {"site-packages", "dist-packages"} & {*root.parts}
    return None if installed else root


def _followed(
    name: str,
    file: Path | None,
    root: Path,
    shown: Path,
    understand: Callable[[Path], dict[str, Any]],
) -> Iterator[OwnModule]:
    """A module of a file, and the modules in `root` that imports lead to, by paths in `shown`."""
    is_own = _ownership(name, root)
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        own = module not in seen and is_own(module)
        source = (file if module == name else _source(module, root)) if own else None
        seen.add(module)
        if source is None:
            continue
        understood = understand(source)
        package = module if source.name == "__init__.py" else module.rpartition(".")[0]
        imports = [*_imported(understood["imports"], package)]
        path, text = source.relative_to(shown).as_posix(), understood.get("text", b"")
        yield OwnModule(module, path, source, understood["meaning"], frozenset(imports), text)
        waiting += imports


def _ownership(name: str, root: Path) -> Callable[[str], bool]:
    """Whether a module is of the same author as the one called `name`, which lies in `root`."""
    if name.startswith(f"{_OURS}."):
        room = ".".join(name.split(".")[:2])
        return lambda module: f"{module}.".startswith(f"{room}.")
    if root.name not in ("site-packages", "dist-packages"):
        return lambda module: module.split(".")[0] != _OURS
    tops = _installed_with(name.split(".")[0], root)
    return lambda module: module.split(".")[0] in tops


def _installed_with(top: str, root: Path) -> set[str]:
    """The packages and modules of the distribution that brings one, itself included."""
    for record in root.glob("*.dist-info/RECORD"):
        lines = record.read_text("utf-8", "replace").splitlines()
        if any(line.startswith((f"{top}/", f"{top}.py,")) for line in lines):
            paths = [Path(line.partition(",")[0]) for line in lines]
            return {path.parts[0].partition(".")[0] for path in paths if path.suffix == ".py"}
    return {top}


def _source(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    for place in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if place.is_file():
            return place
    return next(path.parent.glob(f"{path.name}.*.so"), None) if path.parent.is_dir() else None


def _imported(imports: Iterable[tuple[int, str, list[str]]], package: str) -> Iterator[str]:
    """The names of modules that import statements in a package may mean, and of their parents."""
    for level, module, names in imports:
        above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        base = ".".join(filter(None, [*above, module]))
        for name in (base, *(f"{base}.{name}" for name in names)):
            parts = [part for part in name.split(".") if part]
            yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


# -- what a text means -----------------------------------------------------------------------------


def _understood(file: Path) -> dict[str, Any]:
    """What is remembered of a file: a hash of its meaning, and its imports."""
    if file.suffix != ".py":
        return {"meaning": hash_of(file), "imports": []}
    return _of_program(file.read_bytes())


def _read(file: Path) -> dict[str, Any]:
    """The same of a file that is read to be run, with its text."""
    text = file.read_bytes()
    return {**_of_program(text), "text": text}


def _of_program(text: bytes) -> dict[str, Any]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {"meaning": xxhash.xxh3_128_hexdigest(text), "imports": []}
    imports: list[tuple[int, str, list[str]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return {"meaning": _meaning(tree), "imports": imports}


def _meaning(tree: ast.AST) -> str:
    """A hash of a syntax tree without texts that nobody uses; the same in all versions of Python.

    Versions differ in which fields a node has that may be empty, so these are left out.
    """
    digest = xxhash.xxh3_128()
    waiting: list[Any] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.AST):
            digest.update(f"{type(item).__name__}(".encode())
            waiting.append(())  # its end
            fields = [(name, value) for name, value in ast.iter_fields(item) if name != "kind"]
            for name, value in reversed(fields):
                if value is not None and value != []:
                    waiting += [value, name]
        elif isinstance(item, list):
            kept = [each for each in item if not _is_text(each)]
            digest.update(f"[{len(kept)}".encode())
            waiting += reversed(kept)
        else:
            digest.update(f"{item!r} ".encode())
    return digest.hexdigest()


def _is_text(node: Any) -> bool:
    """Whether it is a statement that is only a text, such as a docstring."""
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_constant and isinstance(node.value.value, str)
