"""Run a study: train what is missing in lockstep, evaluate it, and say what was found.

    for tasks of some SAEs, each in a process of its own:
        those of all arms and sparsities      -> saes/MODEL/ARM_SPARSITY_SEED-KEY/, runs as usual
        their evaluations                     -> evaluations/MODEL/seedN/
        how far they are                      -> tasks/
    all of it                                 -> findings.json, and the report

Everything that is there already is kept, so that a run that was interrupted, or a changed study,
does only what is missing. A key in a folder's name stands for all that its SAE depends on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.files import lock, write
from sae_plugins.base.gpus import visible
from sae_plugins.base.kept import Folder
from sae_plugins.base.ranks import ranks
from sae_plugins.resume.together import CHECKPOINTS, discard_others
from sae_plugins.runs.folder import ORIGIN, RECIPE
from sae_plugins.study import commits, naming, plugin_files, scored
from sae_plugins.study.cells import SAES, Cell, tokens_after
from sae_plugins.study.driver import run_tasks, wait_for_others
from sae_plugins.study.engines import Engine
from sae_plugins.study.evaluated import EVALUATIONS, evaluations, merge
from sae_plugins.study.failures import failed_file, failure
from sae_plugins.study.plan import StudyPlan
from sae_plugins.study.planned import plan_of
from sae_plugins.study.progress import Overall
from sae_plugins.study.sharing import check_devices, check_division
from sae_plugins.study.spec import Study, as_yaml
from sae_plugins.study.tasks import Cutter, Task
from sae_plugins.study.told import tidy
from sae_plugins.study.work import score, work

if TYPE_CHECKING:
    from sae_plugins.runs.setup import SAELensSettings

STUDY = "as_run.yaml"


def run(
    study: Study,
    folder: Path,
    jobs: int | None,
    progress: Overall,
    cache: Folder | None = None,
    engine: Engine | None = None,
) -> None:
    """Train and evaluate what is missing in a study's folder, in so many processes.

    Args:
        study: the study.
        folder: where it lies.
        jobs: how many processes; None for what the engine finds.
        progress: hears what is done.
        cache: where the language models' activations are kept, if anywhere.
        engine: where the processes are; None for this machine.

    Raises:
        SaePluginsError: the study is wrong, or a folder is in use, or cannot be written to, or has
            no room.
    """
    folder, engine = folder.absolute(), engine or Engine()
    plan_of(study, folder)  # which refuses what is wrong before there is a folder
    if ranks().size > 1:
        jobs = 1 if visible() else ranks().beside
    jobs = jobs or engine.jobs(len(study.models) * len(study.seeds))
    threads = _threads(jobs) if engine.is_here else None
    with ExitStack() as stack:
        if ranks().writes:
            stack.enter_context(_locked(folder))
            stack.callback(tidy, folder)
        with ranks().together():
            begun = study
            if ranks().writes:
                begun = _begun(study, folder, threads, progress, cache)
        study = Study.model_validate_json(ranks().first(begun.model_dump_json()))
        known = plan_of(study, folder)
        with ranks().together():
            check_division([*known.pilots, *known.cells])
            check_devices([*known.pilots, *known.cells], jobs if engine.is_here else 2)
        executor = stack.enter_context(engine.open(folder, jobs, threads))
        alike = Task(
            *(study.model_dump_json(), folder, "", 0),
            processes=engine.sharing(jobs),
            threads=threads,
            cache=cache,
        )
        workers = 1 if ranks().size > 1 else jobs
        doing = _Doing(Cutter(study, alike, workers), executor, progress)
        # by the first pilots, the coefficients are known with which others try learning rates
        waiting = _waiting(known, folder)
        while waiting:
            doing.train(waiting)
            before = [cell.folder for cell in waiting]
            waiting = _waiting(known := plan_of(study, folder), folder)
            if [cell.folder for cell in waiting] == before:
                raise SaePluginsError(
                    "no pilot was trained: code or data have changed since the study began; run "
                    "it again"
                )
        doing.all(known.cells)
        if ranks().writes:
            for model, seed in {(cell.model, cell.seed) for cell in known.cells}:
                merge(evaluations(folder, model, seed))
            every = [*known.pilots, *known.cells]
            missing = [cell.folder.name for cell in every if cell.summary(folder) is None]
            discard_others(folder / CHECKPOINTS, missing)


@dataclass(frozen=True)
class _Doing:
    """Has tasks done, by an executor or together with other ranks."""

    cutter: Cutter
    executor: Executor | None
    progress: Overall

    @property
    def folder(self) -> Path:
        """The study's."""
        return self.cutter.alike.folder

    def train(self, cells: Sequence[Cell]) -> None:
        """Train SAEs, and evaluate none."""
        self.progress.expect(len(cells))
        self._together(cells, evaluates=False)

    def all(self, cells: Sequence[Cell]) -> None:
        """Train SAEs as far as they are missing, and evaluate them."""
        suites = self.cutter.study.models
        self.progress.expect(sum(1 + len(suites[cell.model].suites) for cell in cells))
        self._together(cells, evaluates=True)

    def _together(self, cells: Sequence[Cell], evaluates: bool) -> None:
        tasks = self.cutter.training(cells)
        if ranks().size > 1:
            self._with_other_ranks(tasks, evaluates)
            return
        then = partial(self.cutter.evaluating, passes=len(tasks)) if evaluates else lambda task: ()
        run_tasks(work, tasks, self.executor, self.progress, then)
        wait_for_others(self.folder, self.progress)

    def _with_other_ranks(self, tasks: Sequence[Task], evaluates: bool) -> None:
        for task in tasks:  # whose language model and arms the ranks share
            work(task, self.progress)
            ranks().patiently()  # all SAEs are in their places
        with ranks().together():  # in which none asks another
            for task in tasks[ranks().rank :: ranks().size] if evaluates else ():
                score(task, self.progress)
                for following in self.cutter.evaluating(task, len(tasks)):
                    work(following, self.progress)


def _begun(
    study: Study, folder: Path, threads: int | None, progress: Overall, cache: Folder | None
) -> Study:
    """The study as its folder has it, once all is there that its passes need."""
    naming.remember(study, folder, results=(folder / EVALUATIONS).exists())
    told, study = plugin_files.kept(study, folder)
    write(folder / STUDY, as_yaml(told))  # as it was run last
    commits.look_up(study, folder)
    known = plan_of(study, folder)
    scored.check([cell for cell in known.cells if cell.source], folder)
    if cache is not None:
        progress.say(_planned(study, known, folder, threads, cache))
    for cell in known.pilots:  # what has failed is tried again, once
        failed_file(cell, folder).unlink(missing_ok=True)
    return study


def _waiting(known: StudyPlan, folder: Path) -> list[Cell]:
    """The pilots that are to be trained."""
    return [
        cell
        for cell in known.pilots
        if cell.summary(folder) is None and failure(cell, folder) is None
    ]


def _planned(
    study: Study, known: StudyPlan, folder: Path, threads: int | None, cache: Folder
) -> str:
    """What is about to be kept of language models, for all seeds and also after the pilots.

    Raises:
        SaePluginsError: there is no room for it, or no language model.
    """
    from sae_plugins.runs.activation_cache import expected, plan

    every = [*known.pilots, *known.cells]
    if all(cell.settings.is_synthetic for cell in every):
        raise SaePluginsError("--activation_cache: the study has no language model; leave it out")
    missing = [cell for cell in every if cell.summary(folder) is None]
    runs = [cell.settings.for_saelens() for cell in missing]
    # the cells that follow pilots read what these read, in the orders of the study's seeds
    after = [_following(study, cell) for cell in missing if cell.pilot]
    runs += [replace(settings, seed=seed) for settings in after for seed in study.seeds]
    found = [one for each in expected(runs, threads) for one in each]
    return f"activations: {plan(found, cache)}"


def _following(study: Study, pilot: Cell) -> SAELensSettings:
    """What the cells that follow a pilot read, as settings of one."""
    model, settings = study.models[pilot.model], pilot.settings.for_saelens()
    if model.exact_l0 is False:
        return settings
    tokens = int(model.train.get("calibrate_tokens") or tokens_after(pilot.settings))
    return replace(settings, following_tokens=tokens, unseen_tokens=tokens)


def _locked(folder: Path) -> ExitStack:
    busy = f"{folder}: this study is being run already; wait, or choose another --output_path"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock(folder, SaePluginsError(busy))
    except OSError as error:
        raise SaePluginsError(
            f"--output_path {folder} cannot be written to: {error.strerror}"
        ) from error


def _threads(jobs: int) -> int | None:
    """Of torch in each of so many processes; None for as many as it likes.

    Sums round by their number, so it does not follow how much there is left to do.
    """
    alone = jobs == 1 or ranks().size > 1  # torchrun says how many each rank has
    return None if alone else max(1, (os.cpu_count() or 1) // jobs)


def stale(known: StudyPlan, folder: Path) -> list[Path]:
    """Runs in the folder that are no part of the study any more, after something was changed."""
    names = {folder / cell.folder for cell in (*known.cells, *known.pilots)}
    found = {file.parent for name in (RECIPE, ORIGIN) for file in folder.glob(f"{SAES}/*/*/{name}")}
    return sorted(found - names)
