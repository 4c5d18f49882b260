"""What can go wrong and is answered with sentences: each says what is wrong, and what helps."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

ALIKE = 0.75
"""How alike two names must be for the one to be suggested in place of the other."""
CLEAR = 0.8
"""How alike two names must be for the one to be a misspelling of the other beyond doubt."""


class SaePluginsError(Exception):
    """Something that a user did or met; its arguments are sentences that name culprit and cure.

    Attributes:
        exit_code: of a command that it ends: 2, or 1 if what it was to do had begun.
    """

    exit_code = 2

    def __str__(self) -> str:
        """The sentences, one a line."""
        return "\n".join(map(str, self.args))


class PluginError(SaePluginsError):
    """Something is wrong with a plugin or the way it is used; the message says what to do."""


class StateError(PluginError):
    """A checkpoint is damaged, or of another run; the message names it and says what is wrong."""


class HubError(SaePluginsError):
    """An SAE cannot be uploaded or downloaded; the message says why, and what helps."""


class SuiteError(SaePluginsError):
    """An evaluation cannot be done, or its result cannot be trusted; the message says why."""


class Paused(KeyboardInterrupt):
    """A scheduler's signal, or the end of the time that a run was given: it goes on later."""

    exit_code = 75
    """As EX_TEMPFAIL of sysexits.h: the same will work later."""


@contextmanager
def prefixed(where: str) -> Iterator[None]:
    """Begin every sentence of an error inside with the place where it is wrong."""
    try:
        yield
    except SaePluginsError as error:
        error.args = tuple(f"{where}: {sentence}" for sentence in error.args)
        raise


@contextmanager
def begun() -> Iterator[None]:
    """What a command is to do has begun: an error inside ends it with exit code 1, not 2."""
    try:
        yield
    except StateError:  # of what there is to go on from: nothing has begun
        raise
    except SaePluginsError as error:
        if error.exit_code == SaePluginsError.exit_code:
            error.exit_code = 1
        raise


class Problems:
    """Gathers what is wrong, so that all of it is said at once."""

    def __init__(self) -> None:
        """Nothing is wrong so far."""
        self.sentences: list[str] = []

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.sentences)

    def add(self, *sentences: str) -> None:
        """Note what is wrong, once."""
        self.sentences += [text for text in sentences if text not in self.sentences]

    def mention(self, *words: str) -> bool:
        """Whether any sentence has one of these words, such as --lr."""
        found = "|".join(map(re.escape, words))
        return any(re.search(rf"({found})(?![\w.])", text) for text in self.sentences)

    def __enter__(self) -> Problems:
        """Gather the errors of a block, after which all goes on."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, SaePluginsError):
            self.add(*error.args)
        return isinstance(error, SaePluginsError)

    def stop(self, kind: type[SaePluginsError] = SaePluginsError) -> None:
        """Raise one error with all sentences, if there are any."""
        if self.sentences:
            raise kind(*self.sentences)


def reason(error: OSError) -> str:
    """What the system says of an error, as part of a sentence."""
    return (error.strerror or str(error)).lower()


def nearest(name: str, known: Iterable[str], alike: float = ALIKE) -> list[str]:
    """Up to three known names that `name` may be a misspelling of, the nearest first.

    Beside one that it is a misspelling of beyond doubt, only those that are about as near.
    """
    likeness = {one: _likeness(_folded(one), _folded(name)) for one in sorted(known)}
    near = sorted((one for one in likeness if likeness[one] >= alike), key=lambda x: -likeness[x])
    best = likeness[near[0]] if near else 0.0
    if best >= CLEAR:
        alike = best - (0.1 if best < 1 else 0)  # capitals and hyphens apart, it is that one
    return [one for one in near[:3] if likeness[one] >= alike]


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def _likeness(one: str, other: str) -> float:
    """From 0 to 1: how many letters two names share, unless chance alone explains it."""
    short, long = sorted((one, other), key=len)
    matcher = difflib.SequenceMatcher(None, one, other)
    ratio = matcher.ratio()
    is_part = re.search(rf"(?<![a-z0-9]){re.escape(short)}", long) and ratio >= 0.5
    if len(short) > 2 and is_part:
        return max(ratio, ALIKE)
    if len(short) > 3:
        return ratio
    same = sum(block.size for block in matcher.get_matching_blocks())
    is_near = short[:1] == long[:1] and len(long) - same <= 1
    return max(ratio, ALIKE) if is_near else 0.0


def did_you_mean(name: str, known: Iterable[str], stem: str = "") -> str:
    """A sentence that suggests the nearest known names, or lists them when none is near.

    Args:
        name: as it was given.
        known: what it may have been.
        stem: what precedes all of these, which a suggestion has, too.
    """
    names = sorted(known)
    if near := nearest(name, names):
        return "did you mean " + " or ".join(repr(stem + match) for match in near) + "?"
    return f"known: {', '.join(names)}" if names else "none are known"
