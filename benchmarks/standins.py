"""Stand-ins for packages that other packages import and a benchmark never calls.

SAELens imports transformers, datasets and Weights & Biases when it is imported; a training step
uses none of them, and together they are larger than a machine without a network should be brought.
A stand-in has every name that it is asked for: a class that is false, so that what asks whether
something is available hears no, and that gives itself when it is called.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Name(type):
    """A class out of a stand-in: to inherit from, to subscript, to annotate with."""

    def __getattr__(cls, name: str) -> Any:
        return _name(name)

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __bool__(cls) -> bool:
        return False

    def __or__(cls, _: Any) -> Any:
        return cls

    __ror__ = __or__


def _name(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Name(name, (), {})


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _name(name)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        if fullname.split(".")[0] not in self._packages:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in(*packages: str) -> None:
    """From now on these packages, installed or not, are stand-ins where they are imported."""
    sys.meta_path.insert(0, _Finder(frozenset(packages)))
