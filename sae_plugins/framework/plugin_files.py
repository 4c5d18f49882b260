"""`FILE.py:CLASS`: a plugin that is tried without being packaged.

Only a command line and the study file that it names can name such a file: recipes, methods and
Python cannot, so that nobody runs code without having named it. The file is run together with the
modules beside it that it imports, and nothing else of its folder is: `sys.path` stays as it is, and
the modules are called so that no other code imports them.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from sae_plugins.base.code import LoadedOnce, OwnModule, modules_elsewhere, read_modules
from sae_plugins.base.errors import PluginError, did_you_mean, nearest, reason
from sae_plugins.base.text import in_words
from sae_plugins.framework import registry
from sae_plugins.framework.plugin import Method, Plugin, check_name

FOLDER = "plugin_files"
"""Of a run: where the copies of such files are."""
logger = logging.getLogger(__name__)
_WARNED: set[str] = set()
_RESERVED = ("recorder",)
"""Names of plugins that the framework adds, and that are no entry points."""


def load(given: str, folder: Path | None = None) -> type[Plugin] | type[Method]:
    """Run a file, and give the plugin or method of it that is named.

    Args:
        given: FILE.py:CLASS, or FILE.py where it defines one class of these.
        folder: where a relative path begins; the working folder by default.

    Raises:
        PluginError: says what is wrong with the file or the class.
    """
    path, wanted = parted(given)
    file = Path(os.path.abspath((folder or Path()) / Path(path).expanduser()))
    _check_file(file)
    try:
        modules = _modules(file)
    except OSError as error:
        raise PluginError(f"the plugin file {file} cannot be read: {reason(error)}") from error
    chosen = _chosen(file, wanted, modules.run(file.stem, file))
    _check_free(file, chosen)
    _warn_of_elsewhere(file, modules)
    return chosen


def parted(given: str) -> tuple[str, str]:
    """The path and the class in FILE.py:CLASS; the latter may be empty."""
    found = re.fullmatch(r"(.*\.py):([^/]*)", given)
    return (found[1], found[2]) if found else (given, "")


def copy_of(selected: type) -> str | None:
    """What a run's recipe calls a class that was loaded from a file; None for all others."""
    modules = _loaded_with(selected)
    if modules is None:
        return None
    path = modules.own[selected.__module__.partition(".")[2]].path
    name = next(n for n, value in _defined(sys.modules[selected.__module__]) if value is selected)
    return f"{FOLDER}/{path}:{name}"


def is_copy(name: str) -> bool:
    """Whether a recipe's name of a plugin is of a copy in the folder of the run."""
    return name.startswith(f"{FOLDER}/") and ".." not in Path(parted(name)[0]).parts


def copies(selected: Iterable[type]) -> dict[str, bytes]:
    """The files to copy for these classes, by their paths in `FOLDER`.

    Raises:
        PluginError: two files of different folders would have the same path there.
    """
    found: dict[str, OwnModule] = {}
    for modules in filter(None, map(_loaded_with, selected)):
        for own in modules.own.values():
            other = found.setdefault(own.path, own)
            if other.text != own.text:
                raise PluginError(
                    f"{other.file} and {own.file} differ and would be copied to the same place in "
                    "the run's folder: rename one of them"
                )
    return {path: own.text for path, own in found.items()}


def beside(selected: type) -> dict[str, type[Plugin]]:
    """By name, the mechanisms of the file that a class was loaded from; none of another class.

    Raises:
        PluginError: one is called as an installed plugin.
    """
    modules = _loaded_with(selected)
    if modules is None:
        return {}
    file = modules.own[selected.__module__.partition(".")[2]].file
    defined = (value for _, value in _defined(sys.modules[selected.__module__]))
    found = {each.name: each for each in defined if issubclass(each, Plugin)}
    for each in found.values():
        _check_free(file, each)
    return found


def hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each file."""
    return {path: hashlib.sha256(text).hexdigest() for path, text in sorted(files.items())}


# -- what is refused -------------------------------------------------------------------------------


def _check_file(file: Path) -> None:
    if not file.is_file():
        there = "is a folder" if file.is_dir() else "does not exist"
        known = [path.name for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = f": {did_you_mean(file.name, known)}" if nearest(file.name, known) else ""
        raise PluginError(f"the plugin file {file} {there}{near}")
    if file.name == "__init__.py" or "." in file.stem:
        raise PluginError(
            f"{file} is no plugin file: name a single file, without a further dot in its name"
        )


def _defined(module: ModuleType) -> Iterator[tuple[str, type[Any]]]:
    """The plugins and methods that a module itself defines, by each name that they have there."""
    for name, value in vars(module).items():
        is_own = isinstance(value, type) and value.__module__ == module.__name__
        if is_own and issubclass(value, (Plugin, Method)):
            yield name, value


def _chosen(file: Path, wanted: str, module: ModuleType) -> type[Any]:
    classes = dict(_defined(module))
    if wanted in classes:
        return classes[wanted]
    if not wanted and len({*classes.values()}) == 1:
        return next(iter(classes.values()))
    own = ", ".join(classes)
    if not wanted and classes:
        raise PluginError(
            f"{file} defines several plugins, {own}: name one, such as "
            f"{file.name}:{next(iter(classes))}"
        )
    found = vars(module).get(wanted)
    if isinstance(found, type) and (modules := _loaded_with(found)) is not None:
        where = modules.own[found.__module__.partition(".")[2]].path
        raise PluginError(
            f"{wanted} in {file} is a class of {where}, which that imports: name that file, as "
            f"{where}:{found.__name__}"
        )
    if wanted in vars(module):
        raise PluginError(
            f"{wanted} in {file} is {found!r:.80}: it must be a class of that file that "
            "extends sae_plugins.Plugin or sae_plugins.Method" + (f", as {own} does" if own else "")
        )
    if not classes:
        raise PluginError(f"{file} defines no subclass of sae_plugins.Plugin or of Method")
    raise PluginError(f"{file} has no class {wanted!r}: {did_you_mean(wanted, classes)}")


def _check_free(file: Path, chosen: type[Any]) -> None:
    check_name(chosen)
    known = registry.installed().get(chosen.name)
    if not known and chosen.name not in _RESERVED:
        return
    whose = known[0].distribution if known else "sae-plugins"
    cure = f", or choose that one: --plugin {chosen.name}" if known else ""
    raise PluginError(
        f"{chosen.__name__} in {file} is called {chosen.name!r}, as is an installed plugin of "
        f"{whose}: change its `name`{cure}"
    )


def _warn_of_elsewhere(file: Path, modules: _Modules) -> None:
    """Name what a run has no copy of, once in a process."""
    tops: dict[str, Path] = {}
    for name, place in modules.elsewhere.items():
        tops.setdefault(_top(name), place)
    if tops and modules.package not in _WARNED:
        _WARNED.add(modules.package)
        logger.warning(
            "%s imports %s, which no package installs: a run has no copy of that, and goes on only "
            "where it is found again and is as it was; put it beside the file to have it copied",
            file.name,
            in_words([f"{top} ({place})" for top, place in sorted(tops.items())]),
        )


# -- running a file --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Modules(LoadedOnce):
    """A file and its own modules, as Python's finder and loader of them.

    Their names begin with `package`, which tells files of different folders and versions apart.
    """

    package: str

    def run(self, name: str, file: Path) -> ModuleType:
        """Import one of the modules.

        Raises:
            PluginError: the file has an error, or fails.
        """
        if self not in sys.meta_path:
            sys.meta_path.append(self)
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except KeyboardInterrupt:
            raise
        except SyntaxError as error:
            where = f"{error.filename or file}" + (f", line {error.lineno}" if error.lineno else "")
            raise PluginError(f"{where}: {error.msg}") from error
        except BaseException as error:  # whatever a file does, such as to exit
            line = _line_of(error, {str(own.file) for own in self.own.values()})
            link = (
                f"; it is a link to {os.path.realpath(file)}: name that, to have the modules "
                "beside it"
                if file.is_symlink() and isinstance(error, ImportError)
                else ""
            )
            lost = (
                "; install it, put it beside the file, or have its folder in PYTHONPATH, as when "
                "the run began"
                if isinstance(error, ModuleNotFoundError) and not link
                else ""
            )
            raise PluginError(
                f"{file} cannot be imported: {type(error).__name__}: {error}{line}{link}{lost}"
            ) from error

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python asks for it; folders without an `__init__.py` are packages, too."""
        package, _, inside = name.partition(".")
        own = self.own.get(inside)
        below = not inside or any(each.startswith(f"{inside}.") for each in self.own)
        if package != self.package or not (own or below):
            return None
        is_package = below or (own is not None and own.file.name == "__init__.py")
        origin = None if own is None else str(own.file)
        loader: Any = self
        return ModuleSpec(name, loader, origin=origin, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> None:
        """As Python makes one."""

    def exec_module(self, module: ModuleType) -> None:
        """Run a module, whose imports of its own modules are found here."""
        own = self.own.get(module.__name__.partition(".")[2])
        if own is None:
            return
        module.__file__ = str(own.file)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        # compiled here, so that no __pycache__ is left, and none that is there is used
        exec(compile(own.text, str(own.file), "exec", dont_inherit=True), vars(module))

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level or top not in {each.partition(".")[0] for each in self.own}:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist or (), 0)
        # of modules that import each other, one is no attribute of the package yet
        return found if fromlist else sys.modules[f"{self.package}.{top}"]


def _modules(file: Path) -> _Modules:
    """A file and what it imports of its own, read now.

    Raises:
        PluginError: what a module imports would be other code than what is copied.
        OSError: a file cannot be read.
    """
    found = {own.name: own for own in read_modules(file) if own.file.suffix == ".py"}
    _check_imports(file, found)
    digest = hashlib.sha256(str(file.parent).encode())
    for name, own in sorted(found.items()):
        digest.update(f"{name} {len(own.text)} ".encode() + own.text)
    package = f"_sae_plugins_file_{digest.hexdigest()[:16]}"
    known = getattr(sys.modules.get(package), "__loader__", None)
    if isinstance(known, _Modules):
        return known
    imports = {name for own in found.values() for name in own.imports}
    left = [name for name in imports if _tops([name]).isdisjoint({*_tops(found), "sae_plugins"})]
    return _Modules(found, modules_elsewhere(left), package)


def _check_imports(file: Path, found: Mapping[str, OwnModule]) -> None:
    """Refuse imports that mean other code than what would be copied, here or elsewhere.

    Raises:
        PluginError: names one.
    """
    imported = {name for own in found.values() for name in own.imports}
    tops, own_tops = _tops(imported), _tops(found)
    for top in sorted(tops & own_tops):
        if elsewhere := _elsewhere(top, file.parent):
            raise PluginError(
                f"{file} imports {top!r}, which is in its folder and is installed, too "
                f"({elsewhere}): rename the one in the folder, or put the plugin into a folder of "
                "its own"
            )
    for name, own in found.items():
        folder = own.file.with_suffix("")
        inside = any(each.startswith(f"{name}.") for each in found)
        is_package = own.file.name == "__init__.py" or not folder.is_dir()
        if not is_package and (inside or (name in imported and (folder / "__init__.py").exists())):
            raise PluginError(
                f"{file} imports from {folder}, which has the name of {own.file}: rename one of "
                "them"
            )
    for top in sorted(tops - own_tops - {"sae_plugins"}):
        if (package := _package_of(file, top)) is not None:
            raise PluginError(
                f"{file} imports from {top!r}, the package that it lies in ({package}), of which a "
                "run would have no copy: put what it needs beside the file, and import that as "
                "`from .helpers import ...`"
            )


def _tops(names: Iterable[str]) -> set[str]:
    return set(map(_top, names))


def _top(name: str) -> str:
    return name.partition(".")[0]


def _package_of(file: Path, top: str) -> Path | None:
    """The folder around a file that a top-level name means, if it does."""
    spec = _spec(top)
    places = (spec.submodule_search_locations or []) if spec else file.parents
    around = [Path(os.path.realpath(parent)) for parent in file.parents]
    real = (Path(os.path.realpath(place)) for place in places)
    return next((each for each in real if each in around and (spec or each.name == top)), None)


def _spec(top: str) -> ModuleSpec | None:
    with suppress(ImportError, ValueError):  # the latter of a module without a spec
        return importlib.util.find_spec(top)
    return None


def _elsewhere(top: str, folder: Path) -> str | None:
    """Where a module of this name is outside the folder, if it is anywhere."""
    spec = _spec(top)
    if spec is None:
        return None
    inside = os.path.realpath(folder)
    places = spec.submodule_search_locations or [spec.origin or "built-in"]
    outside = (p for p in places if not os.path.realpath(p).startswith(f"{inside}{os.sep}"))
    return next(outside, None)


def _loaded_with(selected: type) -> _Modules | None:
    loader = getattr(sys.modules.get(selected.__module__), "__loader__", None)
    return loader if isinstance(loader, _Modules) else None


def _line_of(error: BaseException, files: Iterable[str]) -> str:
    """The innermost line of these files in an error's traceback."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in files:
            lines.append(
                f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
            )
        trace = trace.tb_next
    return lines[-1] if lines else ""
