"""What the tasks of a study tell in files of its folder, whichever machine they run on.

    tasks/TASK.json      where a task runs, how far it is, and how it ended
    tasks/claims/HASH    the task that does a thing; HASH.TASK is the heir of a task that has died

So no two tasks do the same at once, whoever has started them, and anybody who can read the folder
sees what is done. It takes a disk on which `link` makes a file once, as NFS does.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sae_plugins.base import alive
from sae_plugins.base.errors import SaePluginsError, reason
from sae_plugins.base.fingerprints import of_value
from sae_plugins.base.names import file_name
from sae_plugins.study.progress import Progress

TASKS = "tasks"
_DIGITS = 24
"""Of a hash."""
_CLAIMS = "claims"
_KEPT = 100
"""Reports of tasks that have ended which stay, the latest ones, for what they tell of costs."""


class Died(SaePluginsError):
    """A task is over before its end, through no fault of its work: another one goes on with it."""


@dataclass(frozen=True)
class Report:
    """What one task tells.

    Attributes:
        about: what it does, for readers.
        saes: the names of the SAEs that it trains; empty if it evaluates.
        stage: what it is doing now.
        share: how much it has done, in SAEs trained and evaluated.
        ended: whether it does no more.
        host: the name of its machine.
        process: its number there.
        seconds: how long it has run.
        facts: what is to be known of its costs.
    """

    about: str
    saes: tuple[str, ...] = ()
    stage: str = ""
    share: float = 0.0
    ended: bool = False
    host: str = ""
    process: int = 0
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def new_name(about: str) -> str:
    """A name for a task that no other one has, nor the same one when it is tried again."""
    return f"{file_name(about, 40)}-{secrets.token_hex(4)}"


def reports(folder: Path) -> dict[str, Report]:
    """What all tasks of a study's folder have told, by their names."""
    names = (path.stem for path in sorted((folder / TASKS).glob("*.json")))
    found = {name: report_of(folder, name) for name in names}
    return {name: report for name, report in found.items() if report is not None}


def report_of(folder: Path, name: str) -> Report | None:
    """What a task has told last; None if that is nothing that can be read."""
    found = alive.told(folder / TASKS, name)
    return None if found is None else _report(found)


def _report(found: Mapping[str, Any]) -> Report | None:
    known = {one.name: found[one.name] for one in fields(Report) if one.name in found}
    return Report(**{**known, "saes": tuple(known.get("saes", ()))}) if "about" in known else None


def living(folder: Path) -> dict[str, Report]:
    """The tasks that are at work, by their names, whoever has started them."""
    found = {name: _report(one) for name, one in alive.living(folder / TASKS).items()}
    return {name: report for name, report in found.items() if report is not None}


def lives(folder: Path, name: str) -> bool:
    """Whether a task is at work."""
    return alive.lives(folder / TASKS, name)


def claimed(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of the names that a living task has."""
    owners = {name: owner for name in names if (owner := _owner(_head(folder, name))) is not None}
    at_work = {owner for owner in {*owners.values()} if lives(folder, owner)}
    return {name for name, owner in owners.items() if owner in at_work}


def tidy(folder: Path) -> None:
    """Remove the claims that no living task has, and the reports that nobody reads any more."""
    if not (folder / TASKS).is_dir():
        return
    with suppress(OSError, Died):  # somebody else's folder, or a full disk
        about = "removing what tasks that have ended have left"
        with Told(folder, new_name(about), Report(about), None) as told:
            for head in (folder / TASKS / _CLAIMS).glob("[0-9a-f]" * _DIGITS):
                told.release(head)
        _remove_reports(folder)


def _remove_reports(folder: Path) -> None:
    """Remove the reports of tasks that have ended, but the latest ones of those that tell costs."""
    files = sorted((folder / TASKS).glob("*.json"), key=_written)
    at_work, kept = living(folder), 0  # a file that was there before this look lives, or never will
    for file in reversed(files):
        report = report_of(folder, file.stem)
        tells = report is not None and bool(report.facts)
        if file.stem in at_work or (tells and kept < _KEPT):
            kept += tells
        else:
            file.unlink(missing_ok=True)


def _written(file: Path) -> float:
    with suppress(OSError):  # removed meanwhile
        return file.stat().st_mtime
    return 0


class Told:
    """A task's own report: its `Progress`, written while it lives, and what it has claimed."""

    def __init__(self, folder: Path, name: str, report: Report, then: Progress | None) -> None:
        """Describe it.

        Args:
            folder: the study's.
            name: of the task.
            report: what it tells at first.
            then: hears the same.
        """
        self.folder, self.name, self._then = folder, name, then
        self._report, self._share = report, report.share
        self._facts: dict[str, Any] = {}
        self._claims: list[str] = []
        self._written = time.monotonic()
        self._alive = alive.Alive(folder / TASKS, name, self._was_held)

    def __enter__(self) -> Told:
        """Begin to tell.

        Raises:
            Died: the folder takes no files here; or a task of this name has begun before, so that
                its scheduler takes it for dead, which it may be or not.
        """
        told = {one.name: getattr(self._report, one.name) for one in fields(Report)}
        try:
            (self.folder / TASKS / _CLAIMS).mkdir(parents=True, exist_ok=True)
            self._alive.begin(**told)
        except FileExistsError:
            raise Died("its scheduler began it a second time") from None
        except OSError as error:
            raise Died(
                f"{self.folder} takes no files on {socket.gethostname()}: {reason(error)}"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._alive.end(**self._now())

    def claim(self, names: Iterable[str]) -> list[str]:
        """Take those of the names that no living task has.

        Raises:
            OSError: the folder takes no files.
        """
        self._claims = [name for name in names if self._take(_head(self.folder, name))]
        return self._claims

    def release(self, head: Path) -> None:
        """Remove what says that ended tasks have had a name, given the file of the first one.

        This one becomes their heir first, so that no other one can while the files go.
        """
        if self._take(head):
            *files, _ = (place for _, place in _chain(head))
            for file in files:
                file.unlink(missing_ok=True)

    def note(self, **facts: Any) -> None:
        """Add what is to be known of the costs."""
        self._facts |= facts
        self._alive.tell(**self._now())

    def stage(self, text: str) -> None:
        """This is being done now."""
        self._alive.tell(stage=text, **self._now())
        if self._then is not None:
            self._then.stage(text)

    def advance(self, share: float) -> None:
        """So much was done."""
        self._share += share
        if time.monotonic() - self._written > 1:
            self._written = time.monotonic()
            self._alive.tell(**self._now())
        if self._then is not None:
            self._then.advance(share)

    def _now(self) -> dict[str, Any]:
        return {"share": self._share, "facts": self._facts}

    def _take(self, head: Path) -> bool:
        while True:  # once more when it is done: the others' files may have gone meanwhile
            *_, (owner, place) = _chain(head)
            if owner == self.name:
                return True
            if owner is not None and lives(self.folder, owner):
                return False
            with suppress(FileExistsError):  # another one was faster: look again
                self._link(place)

    def _link(self, place: Path) -> None:
        """Make a file that says who this is, all at once, unless it is there."""
        own = place.with_name(self.name)
        own.write_text(self.name)
        try:
            os.link(own, place)
        finally:
            own.unlink(missing_ok=True)

    def _was_held(self) -> None:
        if any(_owner(_head(self.folder, name)) != self.name for name in self._claims):
            print("this process was held, and another one does its work", file=sys.stderr)
            os._exit(1)


def _head(folder: Path, name: str) -> Path:
    """The file of the first task that has had a name, which may be longer than a file's."""
    return folder / TASKS / _CLAIMS / of_value(name)[:_DIGITS]


def _chain(head: Path) -> Iterator[tuple[str | None, Path]]:
    """The tasks that have had a name, each with the file of its heir; first the file of the first.

    A claim is never taken away from a task that lives: a file is made once, and so one that has
    died has one heir.
    """
    owner, place = None, head
    while True:
        yield owner, place
        try:
            owner = place.read_text("utf-8")
        except FileNotFoundError:
            return
        place = place.with_name(f"{head.name}.{owner}")


def _owner(head: Path) -> str | None:
    *_, (owner, _) = _chain(head)
    return owner
