"""A flag's value: from the text of a command line, or from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from sae_plugins.base.values import fitting, read
from sae_plugins.settings.flags import Flag


def convert(flag: Flag, value: Any) -> Any:
    """A flag's value, from the text of a command line or from YAML.

    Raises:
        SaePluginsError: it does not have the flag's type.
    """
    if isinstance(value, dict) and "dict" in flag.alternatives:
        return value
    annotation = _annotation(flag)
    return fitting(annotation, read(annotation, as_text(value)), f"--{flag.name}")


def as_text(value: Any) -> str:
    """YAML's value as the command line would have it."""
    if isinstance(value, (list, tuple)):
        return " ".join(as_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _boolean(text: Any) -> bool:
    words = {"true": True, "yes": True, "false": False, "no": False}
    if str(text).lower() not in words:  # such as 1, which pydantic would take
        raise PydanticCustomError("bool_parsing", "")
    return words[str(text).lower()]


_TYPES: dict[str, Any] = {
    "none": None,
    "bool": Annotated[bool, BeforeValidator(_boolean)],
    "int": int,
    "float": float,
    "str": str,
    "dict": dict[str, Any],
    "list[int]": list[int],
    "list[int|none]": list[int | None],
}


def _annotation(flag: Flag) -> Any:
    """The type of a flag's values."""
    kinds = flag.alternatives
    types = (Literal[flag.choices] if kind == "choice" else _TYPES[kind] for kind in kinds)
    return Union[tuple(types)]  # noqa: UP007
