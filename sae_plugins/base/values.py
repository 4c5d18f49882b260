"""Values read from texts as their types have them, and sentences about those that do not fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from sae_plugins.base.errors import SaePluginsError, did_you_mean, nearest
from sae_plugins.base.secrets import is_secret

M = TypeVar("M", bound=BaseModel)
Place = Sequence[str | int]
"""Where a value is: names, and indices in lists."""

_WHOLE = re.compile(r"([+-]?\d[\d_]*(?:\.\d+)?)(?:[eE]\+?(\d\d?)|([kKmM]))")
_ZEROS = {"k": 3, "m": 6}
_KIND = re.compile("(int|float|bool|string|list|tuple|dict|none)_(type|parsing|from|required)")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping, in JSON on a command line",
    "none": "none",
}
_BOUNDS = {
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
    "multiple_of": "a multiple of",
}


def read(annotation: Any, text: str) -> Any:
    """A text as the type has it: none, 100k, the text itself, JSON, or words that make a list.

    Where a type takes both whole and other numbers, 8 is a whole one and 8.0 is not. A text that
    fits in no way is for validation to refuse, read as far as it fits.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    best, fitted = text, 0
    for reading in _readings(text):
        try:
            return adapter.validate_python(reading)
        except ValidationError as error:
            depth = max(len(problem["loc"]) for problem in error.errors())
            if depth > fitted:
                best, fitted = reading, depth
    return best


def _readings(text: str) -> Iterable[Any]:
    word = _of_word(text)
    yield from [word] if word is not text else []
    yield text
    if text.startswith(("[", "{")):
        with suppress(ValueError):
            yield json.loads(text)
    words = [word for word in re.split(r"[\s,]+", text.strip("[]() ")) if word]
    yield from ([_of_word(word) for word in words], words)


def _of_word(text: str) -> Any:
    """None, or a number such as 8, 8.0, 1e-3, 1e6, 100k or 2m; the text itself if it is neither."""
    if text.lower() in ("none", "null"):
        return None
    if match := _WHOLE.fullmatch(text):
        number, zeros, letter = match.groups()
        value = Decimal(number.replace("_", "")).scaleb(int(zeros or _ZEROS[letter.lower()]))
        if value == value.to_integral_value():
            return int(value)
    for kind in (int, float):
        with suppress(ValueError, OverflowError):
            if math.isfinite(found := kind(text)):
                return found
    return text


def booleans_as_text(value: Any) -> list[str]:
    """The names, at any depth, of texts that say true or false; as conditions they are all true."""
    found: list[str] = []
    waiting = [("", value)]
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += [(str(key), inside) for key, inside in one.items()]
        elif isinstance(one, (list, tuple)):
            waiting += [(name, inside) for inside in one]
        elif isinstance(one, str) and one.lower() in ("true", "false"):
            found.append(name)
    return found


def validated(model: type[M], values: Mapping[str, Any], stem: str) -> M:
    """A model of these values.

    Args:
        model: has no models in its fields.
        values: by field.
        stem: what precedes a field's name where a user writes it, such as "--reorder.".

    Raises:
        SaePluginsError: a sentence for each value that does not fit.
    """
    fields = model.model_fields
    try:
        return model(**values)
    except ValidationError as error:
        raise SaePluginsError(
            *sentences(
                error,
                lambda place: f"{stem}{place[0]}" if place else stem.strip("-."),
                known=lambda _: fields,
                optional=lambda place: (
                    bool(place) and _takes_none(fields[str(place[0])].annotation)
                ),
                depth=1,
            )
        ) from error


def fitting(annotation: Any, value: Any, name: str) -> Any:
    """A value as the type has it.

    Raises:
        SaePluginsError: it does not fit; says so of `name`.
    """
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise SaePluginsError(
            *sentences(error, lambda _: name, optional=lambda _: _takes_none(annotation), depth=0)
        ) from error


def sentences(
    error: ValidationError,
    named: Callable[[Place], str],
    known: Callable[[Place], Iterable[str]] = lambda _: (),
    optional: Callable[[Place], bool] = lambda _: False,
    depth: int | None = None,
) -> list[str]:
    """What pydantic finds wrong, a sentence for each place.

    Args:
        error: pydantic's.
        named: how a user writes a place.
        known: the names that there may be in a place, besides its last, which is unknown.
        optional: whether a place may be none.
        depth: of the places; what pydantic says of the inside of one counts as said of it, such as
            of the types of a union.
    """
    places: dict[Place, list[Any]] = {}
    for problem in error.errors():
        places.setdefault(problem["loc"][:depth], []).append(problem)
    found = []
    for place, problems in places.items():
        deepest = max(problems, key=lambda problem: len(problem["loc"]))
        unseen = problems[0]["type"] == "missing" or is_secret(named(place))
        value = "" if unseen else _shown(deepest)
        if problems[0]["type"] == "extra_forbidden":
            name = named(place)
            near = did_you_mean(str(place[-1]), known(place), name.removesuffix(str(place[-1])))
            found.append(f"there is no {'option' if '--' in name else 'key'} {name}: {near}")
        else:
            reason = _reason(problems, optional(place))
            found.append(f"{named(place)}{value}: {reason}".removeprefix(": "))
    return found


def _shown(problem: Any) -> str:
    """The value, after a blank, if it is short."""
    value = problem["input"]
    if value is None or isinstance(value, bool):
        return f" {str(value).lower()}"
    if isinstance(value, str) and (_KIND.match(problem["type"]) or "literal" in problem["type"]):
        return f" {value!r}"
    return f" {value}" if isinstance(value, (str, int, float)) else ""


def _reason(problems: Sequence[Any], optional: bool) -> str:
    """What a value must be instead: one of what the problems' types want."""
    words: list[str] = []
    wanted: list[str] = []
    for problem in problems:
        kind, context = problem["type"], problem.get("ctx", {})
        if kind == "missing":
            return "it is needed"
        if kind == "literal_error":
            words += re.findall(r"'([^']*)'", context["expected"])
        elif match := _KIND.match(kind):
            wanted.append(_KINDS[match[1]])
        elif kind in _BOUNDS:
            (bound,) = context.values()
            number = f"{bound:.6g}" if isinstance(bound, float) else bound
            wanted.append(f"{_BOUNDS[kind]} {number}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = re.sub("^Input should be", "it must be", message)
            return str(message[:1].lower() + message[1:] if message[1:2].islower() else message)
    if _KINDS["float"] in wanted:
        wanted = [kind for kind in wanted if kind != _KINDS["int"]]
    value = problems[0]["input"]
    if isinstance(value, str) and nearest(value, words):
        return did_you_mean(value, words)
    wanted += [*map(repr, words), *(["none"] if optional else [])]
    *others, last = dict.fromkeys(wanted)
    return f"it must be {', '.join(others) + ' or ' if others else ''}{last}"


def _takes_none(annotation: Any) -> bool:
    return NoneType in get_args(annotation)
