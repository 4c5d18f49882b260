"""SAEs × suites × seeds: which results are there, and the run that computes those that are not.

The output folder has `manifest.json` with a row per suite, SAE and seed, a `Result` per row in
`SAE-HASH/SUITE-seedN-KEY.json`, and `results.csv` and `details.csv`, written again after every row.
A result's key is a hash of what it depends on, so that a later run computes only what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sae_plugins.base.errors import SaePluginsError, SuiteError
from sae_plugins.base.files import versions
from sae_plugins.base.identity import compare
from sae_plugins.base.machine_faults import is_of_machine
from sae_plugins.base.secrets import reason_of, without_secrets
from sae_plugins.eval_suites import DATA
from sae_plugins.eval_suites.evaluation.folder import Folder
from sae_plugins.eval_suites.evaluation.manifest import Row
from sae_plugins.eval_suites.evaluation.meter import Meter
from sae_plugins.eval_suites.evaluation.plan import Task, plan
from sae_plugins.eval_suites.evaluation.results import (
    NOT_APPLICABLE,
    ModelInfo,
    Result,
    SAEInfo,
)
from sae_plugins.eval_suites.evaluation.watched import Watched, version_of
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.suite import Cost, Scores, Sent, Suite

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.data import Data
    from sae_plugins.eval_suites.inputs.models import Expected, LanguageModel
    from sae_plugins.eval_suites.inputs.subjects import Subject

logger = logging.getLogger(__name__)

VERSIONS = ("sae-plugins", "sae-bench", "sae-lens", "transformer-lens", "torch", "numpy", "python")


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
        model_class: how language models are loaded; None for what suits each.
        model_name: of the language model; None for the one that each SAE was trained on.
        part: names this one of several evaluations that write into `output_path` at once.
    """

    sources: Sequence[str]
    suites: Mapping[str, tuple[Suite, Any]]
    seeds: Sequence[int]
    preset: str
    output_path: Path
    cache_path: Path
    data: str | None = None
    device: str = "cpu"
    model_class: str | None = None
    model_name: str | None = None
    part: str = ""


class Progress(Protocol):
    """What hears of an evaluation while it runs."""

    def stage(self, text: str) -> None:
        """This is being done now."""

    def finished(self, row: Row, again: bool) -> None:
        """A row has its status; `again` if its result was there before."""


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
        self.output = Folder(request.output_path, request.part)
        planned = plan(request.sources, request.suites, request.seeds, request.model_name)
        self.subjects, self.notes = planned.subjects, planned.notes
        self.hashes = planned.hashes
        """Of every SAE that could be loaded, by its source."""
        self.rows = planned.rows
        """Those of this run, in the order in which they are computed."""
        self._tasks = planned.tasks
        self._expected: dict[str, Expected | Exception] = {}
        self._said: set[str] = set()

    # -- what there is --------------------------------------------------------------------------

    def _is_finished(self, task: Task, data: Data | None) -> bool:
        """Whether the result is there, of the same SAE and the same data."""
        result = self.output.result(task.file)
        if result is None or result.status != "ok" or result.sae.hash != task.subject.hash:
            return False
        if result.code and self._has_changed(task, result.code):
            return False
        if data is None:
            return True
        try:
            known = result.datasets.items()
            return all(version_of(data, name) == old for name, old in known)
        except Exception:  # a commit of the Hub stays what it is while that cannot be reached
            return bool(data.name == "hub")

    def _has_changed(self, task: Task, before: dict[str, str | None]) -> bool:
        """Whether other code computed a result than there is now, which is said once."""
        changes = compare({"code": {"files": before}}, {"code": {"files": task.code}}).changes
        for change in changes:
            text = f"results of {task.suite.name} are computed again: {change}"
            if text not in self._said:
                logger.warning("%s", text)
            self._said.add(text)
        return bool(changes)

    def forecast(self) -> Forecast:
        """What `run` would do; the language models' hashes are taken from earlier runs."""
        done, costs = sum(row.status == "failed" for row in self.rows), []
        shared: set[Any] = set()
        for task in self._tasks:
            self._refuse(task)
            if task.row.status == "planned" and self._seems_finished(task):
                task.row.status = "ok"
            if task.row.status != "planned":
                done += 1
                continue
            group = (task.subject.model_name, task.group)
            costs.append(
                (task.subject, group not in shared, task.suite.cost(task.subject, task.settings))
            )
            shared.add(group)
        return Forecast(done, costs)

    def to_send(self) -> list[Sent]:
        """What `run` would send elsewhere, by address; it says so before it sends anything."""
        sums: dict[str, Sent] = {}
        for task in self._tasks:
            sent = None
            with contextlib.suppress(Exception):  # of a suite that only guesses badly
                sent = task.suite.cost(task.subject, task.settings).sent
            if sent is None:
                continue
            self._refuse(task)
            if task.row.status != "planned" or self._seems_finished(task):
                continue
            known = sums.get(sent.address)
            sums[sent.address] = sent if known is None else known + sent
        return [*sums.values()]

    def _seems_finished(self, task: Task) -> bool:
        """Whether the result is there, by what is known of the language model from earlier runs."""
        models = self.output.manifest.models
        task.place(models.get(self._known_as(task.subject.model_name)), self._data_of(task))
        return self._is_finished(task, None)

    def language_models(self) -> dict[str, str]:
        """By whose code each language model is loaded, in words, or why it cannot be."""
        names = {task.subject.model_name for task in self._tasks if task.is_on_language_model}
        return {name: self._loaded_as(name) for name in sorted(names)}

    def _loaded_as(self, name: str) -> str:
        try:
            return self._expect(name).loader.kind
        except Exception as error:
            return reason_of(error)

    def _expect(self, name: str) -> Expected:
        """What a language model's config says; it is read once."""
        from sae_plugins.eval_suites.inputs.models import expected
        from sae_plugins.eval_suites.saebench.facts import default_dtype

        if name not in self._expected:
            try:
                self._expected[name] = expected(name, default_dtype(name), self.request.model_class)
            except Exception as error:
                self._expected[name] = error
        found = self._expected[name]
        if isinstance(found, Exception):
            raise found
        return found

    def _known_as(self, name: str) -> str:
        """A language model in the manifest, which has its hash; loaded by a flag, it is another."""
        return f"{name} as {self.request.model_class}" if self.request.model_class else name

    def _refuse(self, task: Task) -> None:
        """Give the row its status and reason if its suite, its SAE and its model do not fit."""
        data = self._data_of(task)
        task.refuse(data)
        if task.row.status != "planned" or not task.suite.needs_model:
            return
        text = task.suite.open_text(task.settings)
        if text is not None and data is not None and (lack := data.lack_of_text(text)):
            task.row.status, task.row.reason = "failed", lack
            return
        setting = task.suite.context
        flag, prompt = f"--{task.suite.name}.{setting}", None
        if setting is not None:
            prompt = getattr(task.settings, setting)
        try:
            self._expect(task.subject.model_name).check(task.subject, flag, prompt)
        except Exception as error:
            if is_of_machine(error):
                raise
            task.row.status, task.row.reason = "failed", reason_of(error)

    def _data_of(self, task: Task) -> Data | None:
        """Where a task's data come from; None if it needs none, or there is no such place."""
        from sae_plugins.eval_suites.inputs.data_source import data_source

        if task.suite.needs_model:
            with contextlib.suppress(Exception):  # which is said when the data are needed
                revisions = self.output.manifest.revisions
                return data_source(self.request.data, task.subject.model_name, revisions)
        return None

    # -- the run --------------------------------------------------------------------------------

    def run(self, progress: Progress) -> None:
        """Compute every row that is not there yet; `rows` have their status then.

        Raises:
            SaePluginsError: another evaluation writes into the folder, or it takes no more files.
        """
        self._progress = progress
        for sent in self.to_send():
            progress.stage(str(sent))
        with self.output.locked(self.rows):
            for row in self.rows:
                if row.status == "failed":  # its SAE could not be loaded
                    progress.finished(row, again=False)
            for task in self._tasks:
                self._refuse(task)
                if task.row.status != "planned":
                    task.place(None, None)
                    self._close(task)
            for name in dict.fromkeys(task.subject.model_name for task in self._tasks):
                tasks = [task for task in self._tasks if task.subject.model_name == name]
                self._evaluate_on_model(
                    name, [task for task in tasks if task.row.status == "planned"]
                )

    def _evaluate_on_model(self, name: str, tasks: Sequence[Task]) -> None:
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
        groups: dict[tuple[str, str, int], list[Task]] = {}
        for task in tasks:
            task.place(tools.hash, tools.data)
            if self._is_finished(task, tools.data if task.suite.needs_model else None):
                task.row.status, task.row.file = "ok", task.file
                self._progress.finished(task.row, again=True)
            else:
                groups.setdefault(task.group, []).append(task)
        self.output.save()
        for group in groups.values():
            self._evaluate_group(group, tools)
        del tools
        gc.collect()  # before the next model is loaded

    def _load(self, name: str) -> _Tools:
        from sae_plugins.eval_suites.inputs.data_source import data_source

        data = data_source(self.request.data, name, self.output.manifest.revisions)
        model = self._expect(name).load(self.request.device)
        self.output.manifest.models[self._known_as(name)] = model.hash
        return _Tools(model, data)

    def _evaluate_group(self, tasks: Sequence[Task], tools: _Tools) -> None:
        """Prepare once, then evaluate each SAE."""
        from sae_plugins.eval_suites.inputs.cache import Cache
        from sae_plugins.eval_suites.saebench.isolation import undisturbed

        first = tasks[0]
        data: Any = Watched(tools.data) if first.suite.needs_model else None
        model: Any = tools.model if first.suite.needs_model else None
        about = ", ".join(filter(None, (first.subject.model_name, first.subject.hook_name)))
        cache = Cache(self.request.cache_path, suites=[type(first.suite)], about=about)
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
                with undisturbed():
                    prepared = first.suite.prepare(bench(0, "preparing"), first.settings, seed)
            except Exception as error:
                self._fail(tasks, error)
                return
            for number, task in enumerate(tasks, 1):
                self._progress.stage(f"{name}, {task.row.sae}")
                task.row.status = "running"
                self.output.save_manifest()
                meter = Meter(self.request.device)
                try:
                    with undisturbed():
                        scores = task.suite.evaluate(
                            task.subject, bench(number, task.row.sae), task.settings, seed, prepared
                        )
                except Exception as error:
                    self._fail([task], error)
                except BaseException:  # interrupted
                    self._leave([task])
                    raise
                else:
                    if tools.data is not None:
                        self.output.manifest.revisions |= tools.data.revisions
                    task.row.status = "ok"
                    self._close(task, tools, scores, data.used if data else {}, meter.read())

    # -- what is written ------------------------------------------------------------------------

    def _fail(self, tasks: Sequence[Task], error: Exception) -> None:
        """The rows have failed, all for one reason.

        Raises:
            SuiteError: this is a fault of the machine, for which they are left.
        """
        if is_of_machine(error):
            self._leave(tasks)
            raise SuiteError(
                f"this machine has a fault: {reason_of(error)}; what is finished is kept, and the "
                "same command goes on"
            ) from error
        for task in tasks:
            task.row.status, task.row.reason = "failed", reason_of(error)
            if task.placed is None:
                task.place(None, None)
            self._close(task)
            if not isinstance(error, SaePluginsError):
                text = without_secrets("".join(traceback.format_exception(error)))
                self.output.write(task.stem.with_name(f"{task.stem.name}.error.txt"), text)

    def _leave(self, tasks: Sequence[Task]) -> None:
        """The rows are for another time."""
        for task in tasks:
            task.row.status = "planned"
        with contextlib.suppress(SaePluginsError):
            self.output.save_manifest()

    def _close(
        self,
        task: Task,
        tools: _Tools | None = None,
        scores: Scores | None = None,
        datasets: Mapping[str, str] | None = None,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Write the row's files, the tables and the manifest."""
        from sae_plugins.runs.machine import machine_with

        row, subject = task.row, task.subject
        assert row.status in ("ok", "failed", NOT_APPLICABLE)
        scores = scores or Scores({})
        model = tools.model if tools and task.suite.needs_model else None
        raw = f"{task.stem.name}.saebench.json" if scores.raw is not None else None
        info = {name: getattr(subject, name) for name in SAEInfo.model_fields}
        result = Result(
            suite=row.suite,
            status=row.status,
            reason=row.reason,
            sae=SAEInfo(**info),
            model=ModelInfo(
                name=model.name, hash=model.hash, dtype=str(model.dtype), loaded_as=model.loaded_as
            )
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
            versions=versions((*VERSIONS, *task.suite.distributions)),
            code=task.code,
            raw=raw,
            machine=machine_with(self.request.device) if measured else {},
            **(measured or {}),
        )
        self.output.keep(row, task.file, result, scores.raw)
        self._progress.finished(row, again=False)
