"""What the tasks of a study tell in files of its folder, whichever machine they run on.

    tasks/TASK.json      where a task runs, how far it is, and how it ended; written again and again
                         while it lives, so that one that has died can be told from one that works
    tasks/claims/HASH    the task that does a thing; HASH.TASK is the heir of a task that has died

So no two tasks do the same at once, whoever has started them, and anybody who can read the folder
sees what is done. It takes a disk on which `link` makes a file once, as NFS does.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sae_plugins.base.files import read_json, write
from sae_plugins.base.names import file_name
from sae_plugins.study.progress import Progress

TASKS = "tasks"
_CLAIMS = "claims"
BEAT = 10.0
"""Seconds after which a task that lives tells it again."""
DEAD_AFTER = 60.0
"""Seconds without a word after which a task on another machine counts as dead."""


@dataclass(frozen=True)
class Report:
    """What one task tells.

    Attributes:
        about: what it does, for readers.
        stage: what it is doing now.
        share: how much it has done, in SAEs trained and evaluated.
        ended: whether it does no more.
        host: the name of its machine.
        process: its number there.
        seconds: how long it has run.
        saes: the names of the SAEs that it trains; empty if it evaluates.
        facts: what is to be known of its machine and its costs.
    """

    about: str
    stage: str = ""
    share: float = 0.0
    ended: bool = False
    host: str = ""
    process: int = 0
    seconds: float = 0.0
    saes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def new_name(about: str) -> str:
    """A name for a task that no other one has, nor the same one when it is tried again."""
    return f"{file_name(about, 40)}-{secrets.token_hex(4)}"


def reports(folder: Path) -> dict[str, Report]:
    """What all tasks of a study's folder have told, by their names."""
    found = {}
    for path in sorted((folder / TASKS).glob("*.json")):
        if (report := report_of(folder, path.stem)) is not None:
            found[path.stem] = report
    return found


def report_of(folder: Path, name: str) -> Report | None:
    """What a task has told last; None if that is nothing that can be read."""
    try:
        told = read_json(_file(folder, name))
        return Report(**{**told, "saes": tuple(told["saes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def living(folder: Path) -> dict[str, Report]:
    """The tasks that are at work, by their names, whoever has started them."""
    now = _now(folder)
    known = reports(folder).items()
    return {name: told for name, told in known if _lives(folder, name, told, now)}


def claimed(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of the names that a living task has."""
    alive = living(folder)
    return {name for name in names if _owner(folder, name) in alive} if alive else set()


def forget(folder: Path) -> None:
    """Remove all claims, where no task is at work."""
    if not living(folder):
        shutil.rmtree(folder / TASKS / _CLAIMS, ignore_errors=True)


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
        self._report = replace(report, host=socket.gethostname(), process=os.getpid())
        self._claims: list[str] = []
        self._began = self._written = time.monotonic()
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Told:
        """Begin to tell.

        Raises:
            OSError: the folder takes no files.
        """
        (self.folder / TASKS / _CLAIMS).mkdir(parents=True, exist_ok=True)
        self._write()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._tell(ended=True)

    def claim(self, names: Iterable[str]) -> list[str]:
        """Take those of the names that no living task has.

        Raises:
            OSError: the folder takes no files.
        """
        self._claims = [name for name in names if self._take(name)]
        return self._claims

    def note(self, **facts: Any) -> None:
        """Add what is to be known of the machine and the costs."""
        self._tell(facts={**self._report.facts, **facts})

    def stage(self, text: str) -> None:
        """This is being done now."""
        self._tell(stage=text)
        if self._then is not None:
            self._then.stage(text)

    def advance(self, share: float) -> None:
        """So much was done."""
        with self._lock:
            self._report = replace(self._report, share=self._report.share + share)
        if time.monotonic() - self._written > 1:
            self._tell()
        if self._then is not None:
            self._then.advance(share)

    def _take(self, name: str) -> bool:
        while True:
            owner, place = _last(self.folder, name)
            if owner == self.name:
                return True
            told = None if owner is None else report_of(self.folder, owner)
            if told is not None and _lives(self.folder, owner or "", told, _now(self.folder)):
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

    def _tell(self, **changed: Any) -> None:
        with self._lock:
            self._report = replace(self._report, **changed)
        with suppress(OSError):  # a disk that is full, say: the task itself will notice
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._written = time.monotonic()
            self._report = replace(self._report, seconds=self._written - self._began)
            write(_file(self.folder, self.name), json.dumps(asdict(self._report)) + "\n")

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._over.wait(BEAT):
            was_held, last = time.monotonic() - last > DEAD_AFTER, time.monotonic()
            if was_held and any(_owner(self.folder, name) != self.name for name in self._claims):
                print(
                    f"{self.name}: this process was held, and others do its work", file=sys.stderr
                )
                os._exit(1)
            self._tell()


def _file(folder: Path, name: str) -> Path:
    return folder / TASKS / f"{name}.json"


def _now(folder: Path) -> float:
    """The time by the clock of the disk, which need not be this machine's."""
    clock = folder / TASKS / f".{socket.gethostname()}"
    try:
        clock.touch()
        return clock.stat().st_mtime
    except OSError:  # who only looks may not write there
        return time.time()


def _lives(folder: Path, name: str, told: Report, now: float) -> bool:
    if told.ended:
        return False
    if told.host == socket.gethostname() and not _runs(told.process):
        return False
    try:
        return now - _file(folder, name).stat().st_mtime < DEAD_AFTER
    except OSError:
        return False


def _runs(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _chain(folder: Path, name: str) -> Iterator[tuple[str | None, Path]]:
    """The tasks that have had a name, each with the file of its heir; first the file of the first.

    A claim is never taken away: a file is made once, and so one that has died has one heir.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:24]  # names may be longer than a file's
    owner, place = None, folder / TASKS / _CLAIMS / digest
    while True:
        yield owner, place
        try:
            owner = place.read_text("utf-8")
        except FileNotFoundError:
            return
        place = place.with_name(f"{digest}.{owner}")


def _last(folder: Path, name: str) -> tuple[str | None, Path]:
    *_, last = _chain(folder, name)
    return last


def _owner(folder: Path, name: str) -> str | None:
    return _last(folder, name)[0]
