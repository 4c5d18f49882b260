"""Processes that say in a file that they live, so that any machine on the same disk can tell.

The file is written again every few seconds. A process of this machine is known by its number; one
of another machine, or container, counts as dead when it has been silent for a minute.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from sae_plugins.base.files import read_json, write

BEAT = 10.0
"""Seconds between two words."""
DEAD_AFTER = 60.0
"""Seconds of silence after which a process of another machine counts as dead."""


class Alive:
    """A file, NAME.json, that says what this process does while it lives."""

    def __init__(self, folder: Path, name: str, held: Callable[[], None] = lambda: None) -> None:
        """Name the file; nothing is written.

        Args:
            folder: where it is.
            name: of the file; another one for each process, also where a scheduler begins a
                process again that it takes for dead.
            held: is called before this process says something after it was silent for so long that
                others may take it for dead: it was held, or the disk took nothing.
        """
        self.folder, self.name, self._held = folder, name, held
        self._told: dict[str, Any] = {}
        self._began = self._heard = 0.0
        self._over = threading.Event()
        self._lock = threading.Lock()

    def begin(self, **told: Any) -> None:
        """Write it, and again and again, with the seconds since.

        Raises:
            FileExistsError: a process of this name has begun before.
            OSError: the folder takes no files.
        """
        who = {"host": socket.gethostname(), "place": _place(), "process": os.getpid()}
        self._told = {**told, **who, "ended": False}
        self._began = self._heard = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            _file(self.folder, self.name).touch(exist_ok=False)
        except FileExistsError:
            raise FileExistsError(f"{self.name}: it has begun before") from None
        self._write()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, **told: Any) -> None:
        """Change what it says. A disk that is full, say, is for others to notice."""
        with self._lock:
            self._told |= told
        with suppress(OSError):
            self._write()

    def end(self, **told: Any) -> None:
        """Say that it lives no more."""
        self._over.set()
        self.tell(ended=True, **told)

    def vanish(self) -> None:
        """Remove the file, and the folder if nothing else is in it."""
        self._over.set()
        with self._lock, suppress(OSError):
            self._told = {}  # so that it is not written again
            _file(self.folder, self.name).unlink(missing_ok=True)
            for clock in self.folder.glob(".*"):
                clock.unlink(missing_ok=True)
            self.folder.rmdir()

    def _write(self) -> None:
        with self._lock:
            if not self._told:
                return
            if time.monotonic() - self._heard > DEAD_AFTER:
                self._held()
            self._told["seconds"] = round(time.monotonic() - self._began, 1)
            write(_file(self.folder, self.name), json.dumps(self._told) + "\n")
            self._heard = time.monotonic()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self.tell()


def told(folder: Path, name: str) -> dict[str, Any] | None:
    """What a file says; None if that is nothing that can be read."""
    try:
        found = read_json(_file(folder, name))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "ended" in found else None


def lives(folder: Path, name: str) -> bool:
    """Whether the process that writes a file is alive."""
    found = told(folder, name)
    return found is not None and _lives(folder, name, found, _now(folder))


def living(folder: Path) -> dict[str, dict[str, Any]]:
    """What the files of all processes say that are alive, by their names."""
    now = _now(folder)
    known = {path.stem: told(folder, path.stem) for path in sorted(folder.glob("*.json"))}
    return {
        name: found
        for name, found in known.items()
        if found is not None and _lives(folder, name, found, now)
    }


@cache
def _place() -> str:
    """What processes have in common that know each other by their numbers.

    Containers may have the name of their machine, or all the same one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _now(folder: Path) -> float:
    """The time by the clock of the disk, which need not be this machine's."""
    clock = folder / f".{socket.gethostname()}"
    try:
        clock.touch()
        return clock.stat().st_mtime
    except OSError:  # who only looks may not write there
        return time.time()


def _lives(folder: Path, name: str, found: Mapping[str, Any], now: float) -> bool:
    if found["ended"]:
        return False
    if found.get("place") == _place() and not _runs(found.get("process")):
        return False
    try:
        return now - _file(folder, name).stat().st_mtime < DEAD_AFTER
    except OSError:
        return False


def _runs(process: Any) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, TypeError, OverflowError):
        return False
    return True
