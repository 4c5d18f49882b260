"""`sae_plugins.recorded(...)`: trainings in Python leave the records that commands leave."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import PluginError, prefixed, reason
from sae_plugins.base.files import (
    lock,
    next_free,
    read_json,
    read_rows,
    remove_empty_folders,
    remove_if_empty,
    write,
)
from sae_plugins.base.ranks import join
from sae_plugins.base.values import validated
from sae_plugins.framework import attach
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.resolve import Plan, Selected
from sae_plugins.runs import journal
from sae_plugins.runs.folder import (
    FIGURES,
    METRICS,
    RECIPE,
    TRAINING_SUMMARY,
    UNFINISHED,
    list_own,
    metrics_files,
    numbered,
    own_records,
    summary_of,
)
from sae_plugins.runs.logs import check, conclude
from sae_plugins.runs.recorder import Recorder
from sae_plugins.runs.summary import lines_of, write_summary

if TYPE_CHECKING:
    from sae_plugins.framework.profile import Profile
    from sae_plugins.framework.run import Run
    from sae_plugins.framework.thresholds import HeldOut
    from sae_plugins.resume.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

_ONE_RECORDER = (
    "recorded: it brings a recorder of its own: leave yours out, with its options, and give "
    "`every`, `figures` and `log_to` to `recorded`"
)


@dataclass(frozen=True)
class Record:
    """What a training has left so far, or in all; it is read whenever it is asked for."""

    folder: Path
    number: int = 1
    """Of its trainer among those that were built in one `with`; see `of`."""

    def of(self, number: int) -> Record:
        """The record of another trainer, counted from 1; the figures are those of all."""
        return replace(self, number=number)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, a mapping each: `pandas.DataFrame` makes a table of them."""
        path = self._current(numbered(METRICS, self.number))
        return read_rows(path) if path.exists() else []

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says; empty until the training has ended."""
        path = self.folder / summary_of(self.number)
        ended = not self._unfinished.exists() and path.exists()
        return dict(read_json(path)) if ended else {}

    @property
    def figures(self) -> list[Path]:
        """The figures, which are drawn when the training ends."""
        return sorted(self._current(FIGURES).rglob("*.png"))

    @property
    def _unfinished(self) -> Path:
        return self.folder / UNFINISHED

    def _current(self, name: str) -> Path:
        """Where a file of this training is: an earlier one's are in place until it has ended."""
        return (self._unfinished if self._unfinished.exists() else self.folder) / name


@dataclass(frozen=True)
class RecordedPlan(Plan):
    """A plan, and what its training leaves."""

    record: Record = field(kw_only=True)


@contextmanager
def recorded(
    folder: str | Path,
    *names: Selected | Plan,
    without: Collection[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int | None = None,
    checkpoints: Checkpoints | None = None,
    profile: Profile | None = None,
    text: HeldOut | None = None,
    every: int | None = None,
    figures: bool | None = None,
    log_to: Sequence[str] | None = None,
    trackio_project: str | None = None,
    overwrite: bool = False,
    data_shards: int | None = None,
) -> Iterator[RecordedPlan]:
    """As `sae_plugins.plugins`, and a folder gets what a run of `sae-plugins train` records.

    These are `metrics.jsonl`, `figures/` and `summary.json`. Until the training has ended they are
    in `unfinished/` inside the folder, where those of one that fails stay, also if somebody catches
    the error inside the `with`. The SAE itself lies where SAELens' runner is told to save it, which
    may be the same folder. There is no `run.yaml`: a runner may be given a model and data that no
    recipe can name. A second trainer that is built inside gets files of its own, `metrics-2.jsonl`
    and so on, which `plan.record.of(2)` reads.

    Args:
        folder: for the records.
        names: plugins, methods and classes, or a plan; this and what follows is as for `plugins`.
        without: mechanisms to leave out.
        options: options by plugin name.
        training: settings that SAELens lacks.
        seed: seeds python, numpy and torch on entry, and each plugin's own generator.
        checkpoints: where the state is kept, and resumed from, the records with it.
        profile: measures where the time goes, which the summary then says.
        text: what has held-out text.
        every: steps between rows of `metrics.jsonl`: 10, or as in a plan that was recorded before.
        figures: whether figures are drawn when the training ends: yes, or as in such a plan.
        log_to: "tensorboard", "trackio" or both: dashboards that get the rows of `metrics.jsonl` as
            they come, and the summary; none, or as in such a plan.
        trackio_project: what trackio calls the runs that belong together.
        overwrite: replace the records that are in the folder.
        data_shards: as for `plugins`; of several ranks, rank 0 alone leaves records.

    Yields:
        The resolved plan, whose `record` reads what is recorded.

    Raises:
        PluginError: the folder holds records, cannot be written to, or is in use; and whatever
            `plugins` refuses.
    """
    if "recorder" in (options or {}):
        raise PluginError(_ONE_RECORDER)
    plan = attach.plan_of(names, without=without, options=options, training=training)
    is_seen = join().writes
    place = Path(folder if is_seen else mkdtemp(prefix="sae-plugins-")).expanduser().absolute()
    scratch = place / UNFINISHED
    trained: list[tuple[Recorder, Run]] = []

    class Recording(Recorder):
        @hookimpl
        def attached(self, run: Run) -> None:
            super().attached(run)
            trained.append((self, run))

    own: dict[str, Any] = {"output_path": str(scratch), "every": every, "figures": figures}
    own |= {"log_to": log_to, "trackio_project": trackio_project}
    plan = _observed(plan, Recording, own)
    chosen = next(options for plugin, options in plan.plugins if plugin is Recording)
    with prefixed("log_to"):
        check(chosen.log_to)
    known = {each.name: getattr(plan, each.name) for each in fields(Plan)}
    try:
        place.mkdir(parents=True, exist_ok=True)
        unlock = lock(place, PluginError(f"recorded: {place} is being recorded into already"))
    except OSError as error:
        raise PluginError(f"recorded: {place} cannot be written to: {reason(error)}") from error
    if not is_seen:
        unlock.callback(rmtree, place, ignore_errors=True)
    with unlock:
        _move_rest(place)
        _check(place, overwrite)
        if checkpoints is None or checkpoints.step is None:
            _put_aside(scratch)
        started = time.perf_counter()
        try:
            with attach.plugins(
                plan,
                seed=seed,
                checkpoints=checkpoints,
                profile=profile,
                text=text,
                data_shards=data_shards,
            ):
                yield RecordedPlan(**known, record=Record(place))
            _add_calibrations(trained)
            if _have_ended(scratch, [recorder for recorder, _ in trained]):
                measured = None if profile is None else profile.as_json()
                write_summary(scratch, [], {}, time.perf_counter() - started, measured)
                numbers = [recorder.number for recorder, _ in trained]
                conclude(chosen.log_to, scratch, chosen.trackio_project, numbers)
                _finish(place)
        finally:
            _remove_if_empty(place)


def _observed(plan: Plan, recorder: type[Recorder], options: Mapping[str, Any]) -> Plan:
    """The plan with a recorder, whose options are those that are given, else the plan's own."""
    names = [plugin.name for plugin, _ in plan.plugins]
    if recorder.name in names and not isinstance(plan, RecordedPlan):
        raise PluginError(_ONE_RECORDER)
    given = {name: value for name, value in options.items() if value is not None}
    valid = dict(validated(recorder.Options, given, ""))
    return plan.observed_by(recorder, **{name: valid[name] for name in given})


def _add_calibrations(trained: Sequence[tuple[Recorder, Run]]) -> None:
    """Say in summaries how thresholds were set, which is after they were written."""
    for recorder, run in trained:
        path = recorder.path(TRAINING_SUMMARY)
        if run.calibration is not None and path.exists():
            summary = {**read_json(path), **lines_of(run.calibration)}
            write(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _have_ended(scratch: Path, recorders: Sequence[Recorder]) -> bool:
    """Whether there are records of trainings, all of which have ended; says so if one has not."""
    ended = [recorder.has_ended for recorder in recorders]
    if not all(ended):
        which = "it" if len(ended) == 1 else f"{ended.count(False)} of {len(ended)} trainings"
        logger.warning(
            "recorded: no training has ended here as a whole, since %s did not reach the end; what "
            "was recorded stays in %s",
            which,
            scratch,
        )
    return bool(ended) and all(ended)


def _check(folder: Path, overwrite: bool) -> None:
    if any((each / RECIPE).exists() for each in (folder, folder / UNFINISHED)):
        raise PluginError(
            f"recorded: {folder} holds a run of sae-plugins train, whose {RECIPE} would say "
            "nothing of this one: choose another folder"
        )
    held = own_records(folder)
    if held and not overwrite:
        raise PluginError(
            f"recorded: {folder} holds the records of a training ({', '.join(held[:3])}): choose "
            "another folder, or overwrite=True to replace them"
        )


def _put_aside(scratch: Path) -> None:
    """Keep what a training that failed had recorded under another name."""
    if any(file.stat().st_size for file in metrics_files(scratch)):
        scratch.rename(next_free(scratch))


def _finish(folder: Path) -> None:
    """Move the records to their places, in place of earlier ones."""
    scratch = folder / UNFINISHED
    (scratch / TRAINING_SUMMARY).unlink(missing_ok=True)  # `summary.json` has it
    names = list_own(scratch)
    gone = [name for name in own_records(folder) if name not in names]
    journal.begin(scratch, folder, journal.Moves(names, gone))
    _move_rest(folder)


def _move_rest(folder: Path) -> None:
    """Do what the journal says, if there is one."""
    moves = journal.pending(folder)
    if moves is not None:
        journal.carry_out(folder / UNFINISHED, folder, moves)
        _remove_if_empty(folder)
        journal.end(folder)


def _remove_if_empty(folder: Path) -> None:
    """Remove the folders that a training has not filled."""
    for file in [*metrics_files(folder / UNFINISHED)]:
        if not file.stat().st_size:
            file.unlink()
    remove_empty_folders(folder / UNFINISHED)
    remove_if_empty(folder)
