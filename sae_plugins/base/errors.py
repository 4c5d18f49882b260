"""What can go wrong and is answered with sentences: each says what is wrong, and what helps."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
    """What a command is to do has begun: an error inside ends it with exit code 1."""
    try:
        yield
    except StateError:  # of what there is to go on from: nothing has begun
        raise
    except SaePluginsError as error:
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

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Note the errors inside, and go on after the block."""
        try:
            yield
        except SaePluginsError as error:
            self.add(*error.args)

    def stop(self, kind: type[SaePluginsError] = SaePluginsError) -> None:
        """Raise one error with all sentences, if there are any."""
        if self.sentences:
            raise kind(*self.sentences)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that `name` may be a misspelling of, the nearest first."""
    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)


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
