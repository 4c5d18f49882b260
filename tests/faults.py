"""Every change that a process makes to its files is an event, at which it can be killed.

Python tells its audit hooks of files that are opened, moved and removed. What it does not tell of
is added here: the first write into a file, and the files that PyTorch and safetensors write.
"""

from __future__ import annotations

import builtins
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FORK = multiprocessing.get_context("fork")
LOG = "log.txt"
"""In the working directory: what the last process printed."""
_EVENTS = "events.json"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = (
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir"),
    *("os.truncate", "os.link", "os.symlink"),
)


def flush_then(row: int, then: Callable[[], Any]) -> Callable[[Any], None]:
    """A recorder's `flush` that does something when a run has written so many rows."""
    from sae_plugins.runs.recorder import Recorder

    flush = Recorder.flush

    def flushing(self: Any) -> None:
        flush(self)
        if self.lines.count(b"\n") == row:
            then()

    return flushing


@contextmanager
def interrupted(row: int) -> Iterator[None]:
    """Runs in this process are interrupted, as by Ctrl-C, when they have written so many rows."""
    from sae_plugins.runs.recorder import Recorder

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Recorder, "flush", flush_then(row, interrupt))
        yield


class Faults:
    """Counts the events below the working directory, and sends this process a signal at one."""

    def __init__(self, at: int, number: signal.Signals) -> None:
        """Send the signal at the event of this number; 0 for never."""
        self.at, self.number = at, number
        self.events: list[str] = []
        self.root = os.getcwd() + os.sep
        self.quiet = False

    def watch(self) -> None:
        """Begin; there is no end, so that this is for processes that end soon."""
        import safetensors.torch
        import torch

        sys.addaudithook(self._audited)
        opening = builtins.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            result = opening(file, mode, *args, **kwargs)
            if set(mode) & set("wax+") and self._counts(file):
                self._watch_writing(result, str(file))
            return result

        builtins.open = io.open = opened
        safetensors.torch.serialize_file = self._as_events(safetensors.torch.serialize_file)
        torch.save = self._as_events(torch.save)

    def event(self, what: str, half: Callable[[], Any] = bool) -> None:
        """Something is about to be done; `half` does half of it, for a process that is killed."""
        if self.quiet:
            return
        self.events.append(what.replace(self.root, ""))
        if len(self.events) == self.at:
            if self.number == signal.SIGKILL:
                with self._unseen():
                    half()
            self.happen()

    def happen(self) -> None:
        """Now."""
        os.kill(os.getpid(), self.number)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def _counts(self, path: Any) -> bool:
        is_path = not isinstance(path, int)
        return is_path and os.path.abspath(os.fsdecode(path)).startswith(self.root)

    def _audited(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = args
            if flags & _WRITING and self._counts(path):
                self.event(f"open {path}")
        elif name in _CHANGES and self._counts(args[0]):
            path, folder = args[0], args[-1]
            is_there = os.path.exists(path) if folder == -1 else None
            if is_there is not (name == "os.mkdir"):  # which would change nothing
                self.event(f"{name} {path}")

    def _watch_writing(self, file: Any, name: str) -> None:
        """The first write into a file is an event."""
        write, event = file.write, self.event

        def writing(data: Any) -> Any:
            file.write = write

            def half() -> None:
                write(data[: len(data) // 2])
                file.flush()

            event(f"write {name}", half)
            return write(data)

        file.write = writing

    def _as_events(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """A function that writes a whole file, as two events: nothing and half of it is there."""

        def writing(what: Any, path: Any, **kwargs: Any) -> Any:
            def half() -> None:
                write(what, path, **kwargs)
                os.truncate(path, os.path.getsize(path) // 2)

            self.event(f"open {path}")
            self.event(f"write {path}", half)
            with self._unseen():
                return write(what, path, **kwargs)

        return writing


def _child(act: Callable[[], int], at: int, number: signal.Signals) -> None:
    import torch
    from tqdm import tqdm

    # tqdm's own lock is shared among forked processes, and stays locked when one is killed
    tqdm.set_lock(threading.RLock())
    # as in a new process: a runner of SAELens' that ran in this one has left its own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # its pool of threads is no more, and two threads would make another
    with Path(LOG).open("w", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        faults = Faults(at, number)
        faults.watch()
        code = act()
    faults.quiet = True
    Path(_EVENTS).write_text(json.dumps(faults.events))
    os._exit(code)


def forked(act: Callable[[], int], at: int = 0, number: signal.Signals = signal.SIGKILL) -> int:
    """Do something in a process of its own, which gets a signal at an event; its exit code.

    A fork, since importing SAELens takes ten seconds. The events of a process that has ended by
    itself are in `events()`, and what it printed in `said()`.
    """
    Path(_EVENTS).unlink(missing_ok=True)
    process = FORK.Process(target=_child, args=(act, at, number))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "it does not stop"
    return process.exitcode


def events() -> list[str]:
    """Of the last process, if it ended by itself."""
    return json.loads(Path(_EVENTS).read_text())


def said() -> str:
    """By the last process."""
    return Path(LOG).read_text()


def contents(folder: Path, *but: str) -> dict[str, Any]:
    """Files and folders, bit for bit, but for the times that JSON files tell.

    Args:
        folder: the folder.
        but: more of what the names of lines in JSON files contain that do not count.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = None
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            left_out = "|".join(["second", *but])
            found[name] = [
                {k: v for k, v in json.loads(line).items() if not re.search(left_out, k)}
                for line in lines
            ]
        else:
            found[name] = path.read_bytes()
    return found
