"""SAEs × suites × seeds: which results are there, and the run that computes those that are not.

The output folder has `manifest.json` with a row per suite, SAE and seed, a `Result` per row in
`SAE-HASH/SUITE-seedN-KEY.json`, and `results.csv` and `details.csv`, written anew after every row.
A result's key is a hash of what it depends on, so that a later run computes only what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import ValidationError

from sae_plugins.base.errors import SaePluginsError, without_secrets
from sae_plugins.base.files import lock, versions, write
from sae_plugins.eval_suites.evaluation.manifest import MANIFEST, Manifest, Row
from sae_plugins.eval_suites.evaluation.results import ModelInfo, Result, SAEInfo
from sae_plugins.eval_suites.evaluation.tables import details_table, results_table
from sae_plugins.eval_suites.suite import Bench, Cost, Scores, Suite

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.data import Data
    from sae_plugins.eval_suites.inputs.models import LanguageModel
    from sae_plugins.eval_suites.inputs.subjects import Subject

RESULTS, DETAILS, FIGURES = "results.csv", "details.csv", "figures"
VERSIONS = ("sae-plugins", "sae-bench", "sae-lens", "transformer-lens", "torch", "numpy", "python")
KEYED_VERSIONS = ("sae-bench", "sae-lens")
"""Other versions than these do not make a result another one."""
DATA = ("world", "hub")
"""What `Request.data` may be besides a folder."""
NOT_APPLICABLE: Literal["not applicable"] = "not applicable"


@dataclass(frozen=True)
class Request:
    """What to evaluate, and with what.

    Attributes:
        sources: SAEs, as `load_subject` takes them.
        suites: each suite with its settings, by name.
        seeds: each makes a row per suite and SAE.
        preset: which preset the settings began with.
        output_path: folder of the results.
        cache_path: folder of what is kept of the language model alone.
        data: "world", "hub", a folder, or None for what suits the model.
        device: of torch.
    """

    sources: Sequence[str]
    suites: Mapping[str, tuple[Suite, Any]]
    seeds: Sequence[int]
    preset: str
    output_path: Path
    cache_path: Path
    data: str | None = None
    device: str = "cpu"


class Progress(Protocol):
    """What hears of an evaluation while it runs."""

    def stage(self, text: str) -> None:
        """This is being done now."""

    def finished(self, row: Row, again: bool) -> None:
        """A row has its status; `again` if its result was there before."""


@dataclass(eq=False)
class _Task:
    """A row with what it needs to be computed."""

    row: Row
    subject: Subject
    suite: Suite
    settings: Any
    stem: Path | None = None
    """Where its files go, without their endings."""

    @property
    def group(self) -> tuple[str, str, int]:
        """Tasks of one group share what their suite prepares."""
        return (self.subject.hook_name, self.suite.name, self.row.seed)


@dataclass
class _Tools:
    """What all SAEs of one language model are evaluated with; None where no suite needs it."""

    model: LanguageModel | None
    data: Data | None

    @property
    def hash(self) -> str | None:
        return self.model.hash if self.model else None


@dataclass(frozen=True)
class Forecast:
    """What a run would do: how many rows are left, and about what they take."""

    done: int
    costs: list[tuple[Subject, bool, Cost]] = field(default_factory=list)
    """Of each row to do; the flag says whether what SAEs share counts here."""


class Evaluation:
    """One run over its rows; see the module's docstring."""

    def __init__(self, request: Request) -> None:
        """Load the SAEs and plan the rows; nothing is written.

        Raises:
            SaePluginsError: the output folder's manifest is damaged.
        """
        data = request.data
        # suites run in another working folder
        self.request = request = dataclasses.replace(
            request,
            cache_path=request.cache_path.absolute(),
            data=data if data in (None, *DATA) else str(Path(str(data)).absolute()),
        )
        self.folder = request.output_path
        self.manifest = Manifest.read(self.folder)
        self.notes: list[str] = []
        self.subjects: list[Subject] = []
        self.hashes: dict[str, str] = {}
        """Of every SAE that could be loaded, by its source."""
        self._tasks: list[_Task] = []
        self._results: dict[str, Result] = {}
        self.rows: list[Row] = []
        """Those of this run, in the order in which they are computed."""
        self._plan()

    def _plan(self) -> None:
        from sae_plugins.eval_suites.inputs.cache import fingerprint
        from sae_plugins.eval_suites.inputs.subjects import load_subject

        seen: dict[str, str] = {}
        hashes = {
            name: fingerprint(settings.model_dump(mode="json"))[:8]
            for name, (_, settings) in self.request.suites.items()
        }
        places = [(name, seed) for name in self.request.suites for seed in self.request.seeds]
        for source in dict.fromkeys(self.request.sources):
            try:
                subject = load_subject(source)
            except Exception as error:
                failed = {"sae": source, "source": source, "status": "failed"}
                self.rows += [
                    Row(suite=n, seed=seed, reason=_reason(error), settings=hashes[n], **failed)
                    for n, seed in places
                ]
                continue
            self.hashes[source] = subject.hash
            if subject.hash in seen:
                self.notes.append(
                    f"{source} is the same SAE as {seen[subject.hash]}: it counts once"
                )
                continue
            seen[subject.hash] = source
            self.subjects.append(subject)
            for name, seed in places:
                suite, settings = self.request.suites[name]
                row = Row(
                    suite=name, sae=subject.name, source=subject.source, sae_hash=subject.hash,
                    seed=seed, settings=hashes[name],
                )  # fmt: skip
                self._tasks.append(_Task(row, subject, suite, settings))
        self._tasks.sort(key=lambda task: (task.subject.model_name, task.group))
        self.rows += [task.row for task in self._tasks]

    # -- what there is --------------------------------------------------------------------------

    def results(self, rows: Iterable[Row]) -> list[tuple[Row, Result]]:
        """The rows that are ok, each with its result; one whose file is gone is left out."""
        found = ((row, self._result(row.file)) for row in rows if row.status == "ok")
        return [(row, result) for row, result in found if result is not None]

    def _result(self, file: str | None) -> Result | None:
        if file is None:
            return None
        if file not in self._results:
            try:
                text = (self.folder / file).read_text("utf-8")
                self._results[file] = Result.model_validate_json(text)
            except (OSError, ValidationError):
                return None
        return self._results[file]

    def _stem(self, task: _Task, model_hash: str | None, data: Data | None) -> Path:
        from sae_plugins.eval_suites.inputs.cache import fingerprint

        found = versions(KEYED_VERSIONS)
        row, suite = task.row, task.suite
        if not suite.needs_model:
            model_hash = data = None
        # a folder may move: the result itself has the fingerprints of what was read
        kind = None if data is None else data.name if data.name in DATA else "folder"
        key = fingerprint(
            suite.name, suite.version, task.settings.model_dump(mode="json"), row.seed,
            model_hash, kind, task.subject.hash, found,
            task.subject.dataset, task.subject.training_tokens,
        )  # fmt: skip
        folder = Path(f"{row.sae}-{task.subject.hash[:8]}")
        return folder / f"{suite.name}-seed{row.seed}-{key[:8]}"

    def _is_finished(self, task: _Task, data: Data | None) -> bool:
        """Whether the result is there, of the same SAE and the same data."""
        assert task.stem is not None
        result = self._result(_json(task.stem))
        if result is None or result.status != "ok" or result.sae.hash != task.subject.hash:
            return False
        if data is None:
            return True
        try:
            known = result.datasets.items()
            return all(_fingerprint(data, name) == old for name, old in known)
        except Exception:  # a commit of the Hub stays what it is while that cannot be reached
            return bool(data.name == "hub")

    def forecast(self) -> Forecast:
        """What `run` would do; the language models' hashes are taken from earlier runs."""
        from sae_plugins.eval_suites.inputs.data import data_source

        done, costs = sum(row.status == "failed" for row in self.rows), []
        shared: set[Any] = set()
        for task in self._tasks:
            self._refuse(task)
            if task.row.status != "planned":
                done += 1
                continue
            name = task.subject.model_name
            data = None
            if task.suite.needs_model:
                with contextlib.suppress(Exception):
                    data = data_source(self.request.data, name, self.manifest.revisions)
            task.stem = self._stem(task, self.manifest.models.get(name), data)
            if self._is_finished(task, None):
                task.row.status = "ok"
                done += 1
                continue
            group = (name, task.group)
            costs.append(
                (task.subject, group not in shared, task.suite.cost(task.subject, task.settings))
            )
            shared.add(group)
        return Forecast(done, costs)

    # -- the run --------------------------------------------------------------------------------

    def run(self, progress: Progress) -> None:
        """Compute every row that is not there yet; `rows` have their status then.

        Raises:
            SaePluginsError: another evaluation writes into the folder, or it takes no more files.
        """
        self._progress = progress
        with self._writing("the folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            unlock = lock(self.folder)
        except BlockingIOError as error:
            raise SaePluginsError(
                f"{self.folder}: another evaluation is writing into it; wait, or choose another "
                "folder"
            ) from error
        try:
            self.manifest = Manifest.read(self.folder)  # which may have changed before the lock
            self._previous = list(self.manifest.rows)
            self.manifest.add(self.rows)
            self._save()
            for row in self.rows:
                if row.status == "failed":  # its SAE could not be loaded
                    progress.finished(row, again=False)
            for task in self._tasks:
                self._refuse(task)
                if task.row.status != "planned":
                    task.stem = self._stem(task, None, None)
                    self._close(task)
            for name in dict.fromkeys(task.subject.model_name for task in self._tasks):
                tasks = [task for task in self._tasks if task.subject.model_name == name]
                self._of_model(name, [task for task in tasks if task.row.status == "planned"])
        finally:
            unlock()

    def _refuse(self, task: _Task) -> None:
        from sae_plugins.world.synthetic_models import SYNTHETIC

        model = task.subject.model_name
        try:
            if task.suite.needs_model and model.startswith(SYNTHETIC):
                task.row.reason = f"needs a language model; this SAE was trained on {model}"
            else:
                task.row.reason = task.suite.refusal(task.subject)
        except Exception as error:
            task.row.status, task.row.reason = "failed", _reason(error)
        else:
            if task.row.reason is not None:
                task.row.status = NOT_APPLICABLE

    def _of_model(self, name: str, tasks: Sequence[_Task]) -> None:
        """All rows of one language model, which is loaded once, if at all."""
        tools = _Tools(None, None)
        with_model = [task for task in tasks if task.suite.needs_model]
        if with_model:
            self._progress.stage(f"loading {name}")
            try:
                tools = self._load(name)
            except Exception as error:
                self._fail(with_model, error)
                tasks = [task for task in tasks if task not in with_model]
        groups: dict[tuple[str, str, int], list[_Task]] = {}
        for task in tasks:
            task.stem = self._stem(task, tools.hash, tools.data)
            if self._is_finished(task, tools.data if task.suite.needs_model else None):
                task.row.status, task.row.file = "ok", _json(task.stem)
                self._progress.finished(task.row, again=True)
            else:
                groups.setdefault(task.group, []).append(task)
        self._save()
        for group in groups.values():
            self._of_group(group, tools)
        del tools
        gc.collect()  # before the next model is loaded

    def _load(self, name: str) -> _Tools:
        from sae_plugins.eval_suites.inputs.data import data_source
        from sae_plugins.eval_suites.inputs.models import load_language_model

        data = data_source(self.request.data, name, self.manifest.revisions)
        model = load_language_model(name, self.request.device)
        self.manifest.models[name] = model.hash
        return _Tools(model, data)

    def _of_group(self, tasks: Sequence[_Task], tools: _Tools) -> None:
        """Prepare once, then evaluate each SAE."""
        from sae_plugins.eval_suites.inputs.cache import Cache
        from sae_plugins.eval_suites.inputs.models import check_d_in, check_hook
        from sae_plugins.eval_suites.saebench.isolation import undisturbed

        first = tasks[0]
        data: Any = _Watched(tools.data) if first.suite.needs_model else None
        model: Any = tools.model if first.suite.needs_model else None
        cache = Cache(self.request.cache_path)
        seed, name = first.row.seed, f"{first.suite.name}, seed {first.row.seed}"
        with tempfile.TemporaryDirectory(prefix="sae-plugins-") as scratch:

            def bench(number: int, whose: str) -> Bench:
                folder = Path(scratch) / str(number)
                folder.mkdir()
                return Bench(
                    model, first.subject.hook_name, data, cache, folder,
                    lambda text: self._progress.stage(f"{name}, {whose}: {text}"),
                )  # fmt: skip

            self._progress.stage(f"{name}: preparing")
            try:
                if first.suite.needs_model:
                    check_hook(model, first.subject.hook_name)
                with undisturbed():
                    prepared = first.suite.prepare(bench(0, "preparing"), first.settings, seed)
            except Exception as error:
                self._fail(tasks, error)
                return
            for number, task in enumerate(tasks, 1):
                self._progress.stage(f"{name}, {task.row.sae}")
                self._start(task)
                meter = _Meter(self.request.device)
                try:
                    if task.suite.needs_model:
                        check_d_in(model, task.subject)
                    with undisturbed():
                        scores = task.suite.evaluate(
                            task.subject, bench(number, task.row.sae), task.settings, seed, prepared
                        )
                except Exception as error:
                    self._fail([task], error)
                except BaseException:  # interrupted
                    task.row.status = "planned"
                    with contextlib.suppress(SaePluginsError):
                        self._save_manifest()
                    raise
                else:
                    if tools.data is not None:
                        self.manifest.revisions |= tools.data.revisions
                    task.row.status = "ok"
                    self._close(task, tools, scores, data.used if data else {}, meter.read())

    # -- what is written ------------------------------------------------------------------------

    def _start(self, task: _Task) -> None:
        task.row.status = "running"
        self._save_manifest()

    def _fail(self, tasks: Sequence[_Task], error: Exception) -> None:
        """The rows have failed, all for one reason."""
        for task in tasks:
            task.row.status, task.row.reason = "failed", _reason(error)
            task.stem = task.stem or self._stem(task, None, None)
            self._close(task)
            if not isinstance(error, SaePluginsError):
                text = without_secrets("".join(traceback.format_exception(error)))
                self._write(task.stem.with_name(f"{task.stem.name}.error.txt"), text)

    def _close(
        self,
        task: _Task,
        tools: _Tools | None = None,
        scores: Scores | None = None,
        datasets: Mapping[str, str] | None = None,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Write the row's files, the tables and the manifest."""
        row, subject, stem = task.row, task.subject, task.stem
        assert stem is not None
        assert row.status in ("ok", "failed", NOT_APPLICABLE)
        scores = scores or Scores({})
        model = tools.model if tools and task.suite.needs_model else None
        raw = f"{stem.name}.saebench.json" if scores.raw is not None else None
        info = {name: getattr(subject, name) for name in SAEInfo.model_fields}
        result = Result(
            suite=row.suite,
            status=row.status,
            reason=row.reason,
            sae=SAEInfo(**info),
            model=ModelInfo(name=model.name, hash=model.hash, dtype=str(model.dtype))
            if model
            else None,
            datasets=dict(datasets or {}),
            seed=row.seed,
            preset=self.request.preset,
            settings=task.settings.model_dump(mode="json"),
            metrics=scores.metrics,
            details=scores.details,
            warnings=[*subject.warnings, *scores.warnings],
            deviations=scores.deviations,
            versions=versions(VERSIONS),
            raw=raw,
            **(measured or {}),
        )
        if raw is not None and scores.raw is not None:
            self._write(stem.with_name(raw), scores.raw)
        self._write(Path(_json(stem)), result.model_dump_json(indent=1) + "\n")
        row.file = _json(stem)
        self._results[row.file] = result
        self._remove_stale(row)
        self._save()
        self._progress.finished(row, again=False)

    def _remove_stale(self, row: Row) -> None:
        """Remove what an earlier run left of the row, if that was no result."""
        previous = next((old for old in self._previous if row.replaces(old)), None)
        if previous is None or previous.file is None or previous.status == "ok":
            return
        stale = [f"{previous.file.removesuffix('.json')}.error.txt"]
        if previous.file != row.file:
            stale.append(previous.file)
        for file in stale:
            (self.folder / file).unlink(missing_ok=True)

    def _save(self) -> None:
        """Write the manifest, and the tables of all its rows."""
        self._save_manifest()
        results = self.results(self.manifest.rows)
        self._write(Path(RESULTS), results_table(results))
        self._write(Path(DETAILS), details_table(results))

    def _save_manifest(self) -> None:
        self._write(Path(MANIFEST), self.manifest.model_dump_json(indent=1) + "\n")

    def _write(self, file: Path, text: str) -> None:
        path = self.folder / file
        with self._writing(str(file)):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, text)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            done = sum(row.status == "ok" and row.file is not None for row in self.rows)
            kept = f"the {done} finished rows are kept there, and " if done else ""
            raise SaePluginsError(
                f"{self.folder}: {what} could not be written: {error.strerror or error}; {kept}"
                "the same command goes on when there is room"
            ) from error


class _Watched:
    """Data that remembers which datasets were read, with their fingerprints."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.used: dict[str, str] = {}

    def fingerprint(self, dataset: str, config: str | None = None) -> str:
        name = f"{dataset}#{config}" if config else dataset
        self.used[name] = _fingerprint(self._data, name)
        return self.used[name]

    def load(self, dataset: str, config: str | None, need: Any) -> Any:
        loaded = self._data.load(dataset, config, need)
        self.fingerprint(dataset, config)
        return loaded

    def text(self, dataset: str, skip_documents: int, seed: int) -> Any:
        text = self._data.text(dataset, skip_documents, seed)
        self.fingerprint(dataset)
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _fingerprint(data: Any, name: str) -> str:
    dataset, _, config = name.partition("#")
    return str(data.fingerprint(dataset, config or None))


class _Meter:
    """What a row takes, from its making to `read`."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        self._device = device
        self._begin = (time.perf_counter(), _cpu_seconds())

    def read(self) -> dict[str, float]:
        """Seconds, CPU seconds (of child processes too), and the peak of memory in bytes.

        The peak is that of the device's memory on CUDA, else that of the process since it began.
        """
        begin, cpu = self._begin
        measured = {
            "seconds": round(time.perf_counter() - begin, 3),
            "cpu_seconds": round(_cpu_seconds() - cpu, 3),
        }
        peak = self._peak()
        return measured | ({} if peak is None else {"peak_memory_bytes": peak})

    def _peak(self) -> int | None:
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            import resource
        except ImportError:  # on Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _json(stem: Path) -> str:
    return f"{stem.as_posix()}.json"


def _reason(error: Exception) -> str:
    """One sentence."""
    text = str(error)
    if isinstance(error, SaePluginsError):
        return text
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    first = without_secrets(first)[:300]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
