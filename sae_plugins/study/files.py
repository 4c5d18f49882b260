"""The files of studies: found, laid over those that they extend, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from sae_plugins import studies
from sae_plugins.base import yaml_files
from sae_plugins.base.errors import Problems, prefixed
from sae_plugins.base.values import Place, sentences
from sae_plugins.study import plugin_files
from sae_plugins.study.existing import ExistingSAE
from sae_plugins.study.idle import idle
from sae_plugins.study.spec import Arm, Model, Override, PaperRows, Study


def load(name_or_file: str) -> Study:
    """A study, with those that it extends.

    A file may begin with `extends: NAME_OR_FILE`: it then says what is otherwise. Mappings are
    merged, everything else is replaced; a null takes an entry away.

    Args:
        name_or_file: the name of a packaged study, or the path of a file that ends in .yaml.

    Raises:
        SaePluginsError: there is none, or it is wrong; says where and how.
    """
    problems = Problems()
    study = read(name_or_file, problems)
    problems.stop()
    assert study is not None
    return study


def read(name_or_file: str, problems: Problems) -> Study | None:
    """A study as `load` gives it, without what is wrong in it, which `problems` hears of.

    It is None where nothing is left that could be looked at further.
    """
    merged: dict[str, Any] | None = None
    with problems:
        merged = _contents(name_or_file)
    if merged is None:
        return None
    study, own = None, Problems()
    try:
        study = Study.model_validate(merged)
    except ValidationError as error:
        own.add(*sentences(error, _place, _fields_at))
        for problem in error.errors():
            _drop(merged, problem["loc"])
        with suppress(ValidationError):  # what is needed is still missing
            study = Study.model_validate(merged)
    with own:
        if study is not None:
            study.check()
            own.add(*idle(study))
    with problems, prefixed(f"study {name_or_file}"):
        own.stop()
    return study


def _contents(name_or_file: str) -> dict[str, Any]:
    """What the file of a study says, and those that it extends."""
    layers = yaml_files.layers("study", name_or_file, studies.FOLDER)
    plugin_files.settle(layers, name_or_file)
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _merged(merged, layer)
    _forget(merged, _gone(layers, merged, "models"))
    for key in ("primary", "unmatched"):
        if isinstance(named := merged.get(key), dict):
            for arm in _gone(layers, merged, "arms"):
                for name in _called(layers, arm):
                    named.pop(name, None)
    return merged


def _drop(tree: dict[str, Any], place: Place) -> None:
    """Remove the innermost key of a place, if it is there."""
    inner, key = tree, ""
    for step in place:
        if key and not isinstance(inner[key], dict):
            break  # of a list, all goes
        inner, key = inner[key] if key else inner, str(step)
        if key not in inner:
            return
    inner.pop(key, None)


def _place(place: Place) -> str:
    return ".".join(map(str, place))


def _fields_at(place: Place) -> list[str]:
    """The keys that there may be where `place` is none."""
    kinds: Mapping[str, type[BaseModel]] = {"models": Model, "arms": Arm, "rows": PaperRows}
    if len(place) == 1:
        return list(Study.model_fields)
    kind = Override if "models" in place[1:] else kinds.get(str(place[0]), Study)
    return list((ExistingSAE if "saes" in place[:-1] else kind).model_fields)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = value
    return merged


def _gone(layers: Iterable[Mapping[str, Any]], merged: Mapping[str, Any], key: str) -> set[str]:
    """The models, or arms, that files take away from the studies that they extend."""
    named = [layer[key] for layer in layers if isinstance(layer.get(key), dict)]
    away = {name for each in named for name, value in each.items() if value is None}
    return away - {*(merged.get(key) or {})}


def _called(layers: Iterable[Mapping[str, Any]], arm: str) -> Iterable[str]:
    """The names of an arm: those of its grid's points, where a file gives it one."""
    named = [layer["arms"].get(arm) for layer in layers if isinstance(layer.get("arms"), dict)]
    grid: dict[str, Any] = {}
    for contents in reversed(named):
        if isinstance(contents, dict) and isinstance(contents.get("grid"), dict):
            grid = _merged(grid, contents["grid"])
    with suppress(ValidationError):
        return Arm(grid=grid).points(arm)
    return [arm]


def _forget(study: dict[str, Any], models: Iterable[str]) -> None:
    """Remove what was to be otherwise on models that are gone."""
    arms = study.get("arms")
    named = [*(arms.values() if isinstance(arms, dict) else ()), study.get("rows")]
    for arm in named:
        otherwise = arm.get("models") if isinstance(arm, dict) else None
        if isinstance(otherwise, dict):
            for model in models:
                otherwise.pop(model, None)
