"""What can go wrong; every message says what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class PluginError(Exception):
    """Something is wrong with a plugin or the way it is used; the message says what to do."""


class StateError(PluginError):
    """A checkpoint is damaged, or of another run; the message names it and says what is wrong."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known names, or lists them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(match) for match in near) + "?"
    return f"known: {', '.join(names)}" if names else "none are known"


class HubError(Exception):
    """An SAE cannot be uploaded or downloaded; the message says why, and what helps."""


class SuiteError(Exception):
    """An evaluation cannot be done, or its result cannot be trusted; the message says why."""


def without_secrets(text: str) -> str:
    """A message without tokens, and without what signs an address."""
    return re.sub(r"hf_\w+|\?\S+=\S+", "...", text)


class UsageError(Exception):
    """The user asked for something that cannot be done; the message says what to do instead."""

    exit_code = 2
