"""How the options of plugins and the settings of suites are shown: types, bounds, values."""

from __future__ import annotations

import types
import typing
from typing import Any


def type_name(annotation: Any) -> str:
    """A type as readers know it."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return "|".join(type_name(part) for part in parts)
    if annotation is type(None):
        return "none"
    if hasattr(annotation, "__metadata__"):
        return type_name(annotation.__origin__)
    if annotation is bool:
        return "true|false"
    return str(getattr(annotation, "__name__", annotation)).lower()


def bounds(field: Any) -> str:
    """The default and the bounds of an option."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}
    said = ["required" if field.is_required() else f"default {shown(field.get_default())}"]
    for bound in field.metadata:
        known = {n: getattr(bound, n, None) for n in signs}
        said += [f"{signs[n]} {value}" for n, value in known.items() if value is not None]
    return ", ".join(said)


def shown(value: Any) -> str:
    """A value as it is typed."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def rounded(value: Any) -> str:
    """A value as it is typed, with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)
