"""The rows of `metrics.jsonl` in dashboards, while they come: TensorBoard and trackio.

Both packages are extras, and are imported only where a run wants their log. What fails here costs
the log, never the training; `conclude` puts right what a log has missed.
"""

from __future__ import annotations

import atexit
import contextvars
import hashlib
import io
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sae_plugins.base.errors import PluginError, SaePluginsError
from sae_plugins.base.files import read_json, read_rows, whole
from sae_plugins.runs.folder import METRICS, UNFINISHED, events, numbered, summary_of

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]
"""A row of `metrics.jsonl`."""


class Log(Protocol):
    """One dashboard's log of one SAE's training."""

    def __init__(self, folder: Path, number: int, project: str) -> None:
        """Import the dashboard's package; nothing is written yet."""

    def open(self, rows: Sequence[Row], resumed: bool) -> None:
        """Begin with these rows: the log has each of them once, and more follow.

        Args:
            rows: what the training has recorded so far.
            resumed: whether the training has a log already, which goes on.
        """

    def add(self, row: Row) -> None:
        """Log one more row, which a log that goes on may have already."""

    def summarise(self, row: Row) -> None:
        """Log what is known of the whole training, at the step of the last row."""

    def close(self) -> None:
        """Have everything where it belongs."""


class TensorBoard:
    """A file of events in the run's folder, which `tensorboard --logdir` finds.

    TensorBoard's own writer would keep what a killed run then loses, in a thread, and name the file
    after the machine.
    """

    def __init__(self, folder: Path, number: int, project: str) -> None:
        """Name the file."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._writer = Event, RecordWriter
        self.file = folder / events(number)

    def open(self, rows: Sequence[Row], resumed: bool) -> None:
        """Write the file again, with these rows as if each had come at its second."""
        start = time.time() - (rows[-1]["seconds"] if rows else 0)
        head = self._event(wall_time=start, file_version="brain.Event:2")
        events = [head, *(self._of(row, start + row["seconds"]) for row in rows)]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with whole(self.file) as partial:
            partial.write_bytes(b"".join(map(self._bytes, events)))

    def add(self, row: Row) -> None:
        """Append the row as one event."""
        with self.file.open("ab") as file:
            file.write(self._bytes(self._of(row, time.time())))

    summarise = add

    def close(self) -> None:
        """There is nothing left to do: no file is open between two rows."""

    def _of(self, row: Row, seconds: float) -> Any:
        values = [{"tag": name, "simple_value": value} for name, value in _numbers(row).items()]
        return self._event(wall_time=seconds, step=row["step"], summary={"value": values})

    def _bytes(self, event: Any) -> bytes:
        record = io.BytesIO()
        self._writer(record).write(event.SerializeToString())
        return record.getvalue()


class Trackio:
    """A run of trackio's, in its own folder of the user's, or where its variables say."""

    def __init__(self, folder: Path, number: int, project: str) -> None:
        """Name the run."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self._trackio, self.project = trackio, project
        self.name = f"{name_of(folder)}{numbered('', number)}"
        self._context = contextvars.Context()  # in which no run of the caller's is, to be ended
        self._run: Any = None
        self._held = -1
        try:
            SQLiteStorage.validate_project_name(project)
        except ValueError as error:
            raise PluginError(f"--trackio_project {project}: {error}") from error

    def open(self, rows: Sequence[Row], resumed: bool) -> None:
        """Begin a run, or go on with it, and log the rows that it has not."""
        with redirect_stdout(io.StringIO()):
            self._run = self._context.run(
                self._trackio.init,
                project=self.project,
                name=self.name,
                resume="allow" if resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        atexit.register(self.close)  # rows wait in a thread of its own
        # a private name, since nothing else knows it of a Space, too
        self._held = self._run._next_step - 1  # noqa: SLF001
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Log the row at its step, unless the run had that when it was opened."""
        if row["step"] > self._held:
            self.summarise(row)

    def summarise(self, row: Row) -> None:
        """Log the row at its step."""
        self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        """End the run."""
        atexit.unregister(self.close)
        if self._run is not None:
            with redirect_stdout(io.StringIO()):
                self._run.finish()
            self._run = None


LOGS: Mapping[str, type[Log]] = {"tensorboard": TensorBoard, "trackio": Trackio}
"""By the name of the package, of the extra, and of what `--log_to` says."""


def check(names: Sequence[str]) -> None:
    """Refuse the logs of packages that are not installed, without importing any.

    Raises:
        PluginError: a sentence for each.
    """
    missing = [name for name in dict.fromkeys(names) if not _is_installed(name)]
    if missing:
        raise PluginError(
            *(
                f"{name} is not installed: pip install 'sae-plugins[{name}]', or leave it out"
                for name in missing
            )
        )


def _is_installed(name: str) -> bool:
    found = find_spec(name)
    return found is not None and found.origin is not None  # a folder of this name has none


class Logs:
    """All logs of one SAE's training that are wanted; the first row opens them."""

    def __init__(self, names: Sequence[str], folder: Path, number: int, project: str) -> None:
        """Import what the logs need.

        Args:
            names: of `LOGS`.
            folder: where the training is recorded.
            number: of the SAE among those that train into one folder.
            project: of trackio's run.

        Raises:
            PluginError: a package is missing or broken, or does not take the project's name.
        """
        check(names)
        self._logs: dict[str, Log] = {}
        self._are_open = False
        for name in dict.fromkeys(names):
            try:
                self._logs[name] = LOGS[name](folder, number, project)
            except ImportError as error:
                raise PluginError(f"--log_to {name}: it cannot be imported: {error}") from error

    def open(self, rows: Sequence[Row], resumed: bool = True) -> None:
        """Go on with a training that has recorded these rows, or begin one."""
        self._each(lambda log: log.open(rows, resumed))
        self._are_open = True

    def add(self, row: Row) -> None:
        """Log one more row."""
        if not self._are_open:
            self.open([], resumed=False)
        self._each(lambda log: log.add(row))

    def summarise(self, row: Row) -> None:
        """Log what is known of the whole training, at the step of the last row."""
        self._each(lambda log: log.summarise(row))

    def close(self) -> None:
        """Have everything where it belongs."""
        self._each(lambda log: log.close())

    def _each(self, act: Callable[[Log], None]) -> None:
        for name, log in list(self._logs.items()):
            try:
                act(log)
            except Exception as error:
                logger.error("--log_to %s: nothing more is logged: %s", name, error)
                del self._logs[name]


def conclude(
    names: Sequence[str], folder: Path, project: str, numbers: Iterable[int] = (1,)
) -> None:
    """Log what is known of trainings at their end, at the last step, and all rows that are missing.

    Args:
        names: of `LOGS`.
        folder: where the trainings are recorded.
        project: of trackio's runs.
        numbers: of the SAEs that were trained into this folder.
    """
    for number in numbers if names else ():
        try:
            rows = read_rows(folder / numbered(METRICS, number))
            known = read_json(folder / summary_of(number))
            logs = Logs(names, folder, number, project)
        except (OSError, ValueError, SaePluginsError) as error:
            logger.error("--log_to %s: the end is not logged: %s", " ".join(names), error)
            continue
        logs.open(rows)
        logs.summarise({**known, "step": rows[-1]["step"] if rows else 0})
        logs.close()


def name_of(folder: Path) -> str:
    """What trackio calls the training that a folder holds: the same name whenever it goes on."""
    place = (folder.parent if folder.name == UNFINISHED else folder).absolute()
    return f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:6]}"


def described(names: Sequence[str], folder: Path, project: str) -> Iterator[str]:
    """How to look at the logs of a training, a line each."""
    if "tensorboard" in names:
        yield f"tensorboard --logdir {shlex.quote(str(folder))}"
    if "trackio" in names:
        yield f'trackio show --project "{project}", run {name_of(folder)}'


def _numbers(row: Row) -> dict[str, float]:
    """The values that are known, but for the step, which stands beside them."""
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, (int, float))
    }
