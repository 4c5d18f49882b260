"""Paths as others may see them: without the folders of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = r"(?:file:|[A-Za-z]:|~\w*|\.\.?)?[/\\]"
_FOLDERS = re.compile(rf"(?<![\w/:.]){_ROOT}+(?:[^\s/\\'\"`]+[/\\]+)+")
"""The folders of a path of this machine, in a text."""
_ABSOLUTE = re.compile(r"(?<![\w/:.~*-])(?:[A-Za-z]:\\|/(?!/))(?:[^\s/\\'\"`<>]+[/\\]+)+")
_JSON_TEXT = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')
_YAML_VALUE = re.compile(r"""(?m)(?<=[:-] )(['"]?)((?:/|[A-Za-z]:\\).+?)\1$""")


def from_here(path: str | Path) -> str:
    """A path from the working folder on, where it is inside; else its last part."""
    whole = os.path.abspath(Path(path).expanduser())
    inside = os.path.relpath(whole, os.getcwd())
    return inside if inside.partition(os.sep)[0] != os.pardir else os.path.basename(whole)


def rootless(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The same values, of which those that are named are paths like that."""
    return {**values, **{name: from_here(values[name]) for name in names if values.get(name)}}


def without_folders(text: str) -> str:
    """A text whose paths of this machine are their last parts."""
    if re.match(_ROOT, text):  # a path by itself, which may have spaces
        text = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return _FOLDERS.sub("", text)


def without_places(text: str, suffix: str = "") -> str:
    """A text whose absolute paths begin in the working folder, or at `~`, or are their last parts.

    Args:
        text: what a file says.
        suffix: of the file: in JSON and YAML, values that are paths may have spaces.
    """
    if suffix in (".json", ".jsonl"):
        return _JSON_TEXT.sub(lambda found: found[0] if found[2] else _in_json(found[1]), text)
    if suffix == ".yaml":
        text = _YAML_VALUE.sub(lambda found: found[1] + _of_value(found[2]) + found[1], text)
    return _ABSOLUTE.sub("", _begun(text))


def _in_json(token: str) -> str:
    try:
        value = json.loads(token)
    except ValueError:
        return token
    told = _of_value(value)
    return token if told == value else json.dumps(told, ensure_ascii=False)


def _of_value(value: str) -> str:
    """A text that may be a path by itself."""
    told = _begun(value)
    is_path = told == value and _ABSOLUTE.match(value) and not re.search(r": |\s/|://", value)
    return from_here(value) if is_path else _ABSOLUTE.sub("", told)


def _begun(text: str) -> str:
    """A text whose paths begin in the working folder, or at `~`, where they can."""
    here, home = os.getcwd(), str(Path.home())
    if here != os.sep:
        text = re.sub(rf"(?<![\w/.~-]){re.escape(here + os.sep)}", "", text)
    if home != os.sep:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return text
