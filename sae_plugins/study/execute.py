"""Run a study: train what is missing in lockstep, evaluate it, and say what was found.

    for (model, seed), each in a process of its own:
        the SAEs of all arms and sparsities   -> saes/MODEL/ARM_SPARSITY_SEED-KEY/, runs as usual
        their evaluations                     -> evaluations/MODEL/seedN/
    all of it                                 -> findings.json, and the report

Everything that is there already is kept, so that a run that was interrupted, or a changed study,
does only what is missing. A key in a folder's name stands for all that its SAE depends on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.base.files import lock, write
from sae_plugins.base.gpus import visible
from sae_plugins.base.kept import Folder
from sae_plugins.base.ranks import ranks
from sae_plugins.base.secrets import reason_of
from sae_plugins.base.shown_paths import without_places
from sae_plugins.eval_suites.evaluation.sources import check_source
from sae_plugins.resume.together import CHECKPOINTS, discard_others
from sae_plugins.runs.folder import ORIGIN, RECIPE, remove_run
from sae_plugins.study import commits, naming, plugin_files, scored
from sae_plugins.study.cells import SAES, Cell, grouped, tokens_after
from sae_plugins.study.evaluated import EVALUATIONS, evaluate, suite_of
from sae_plugins.study.makers import shared_flags
from sae_plugins.study.metrics import check_compared
from sae_plugins.study.plan import StudyPlan, plan
from sae_plugins.study.processes import (
    Overall,
    Pass,
    Progress,
    default_jobs,
    run_passes,
    sharing,
)
from sae_plugins.study.sharing import agree, check_devices, check_division
from sae_plugins.study.spec import Study, as_yaml
from sae_plugins.world import NAME as WORLD

if TYPE_CHECKING:
    from sae_plugins.runs.lockstep import LockstepRun
    from sae_plugins.runs.setup import SAELensSettings, Setup

STUDY = "as_run.yaml"
FAILED = ".failed"
"""Ending of the file, beside a run's folder that is not there, that says why."""


def plan_of(study: Study, folder: Path) -> StudyPlan:
    """The plan, as far as the pilots in the folder say it.

    Raises:
        SaePluginsError: a flag, a suite, a setting or a metric of the study is wrong.
    """
    problems, known = Problems(), StudyPlan([], [], [])
    with problems:
        check_suites(study)

    def shown(cell: Cell) -> float | None:
        if (summary := cell.summary(folder)) is not None:
            return cell.shown(summary)
        if failure(cell, folder) is None:
            return None
        return math.nan if cell.purpose == "tuning" else 0.0

    with problems:
        known = plan(
            study,
            shown,
            lambda cell: cell.found_in(folder),
            lambda model, flags: commits.known(folder, model, flags),
        )
    for cell in known.cells:
        if cell.source and cell.summary(folder) is None:
            with problems, prefixed(f"arms.{cell.arm}.saes"):
                check_source(cell.source)
    problems.stop()
    return known


def run(
    study: Study, folder: Path, jobs: int | None, progress: Overall, cache: Folder | None = None
) -> None:
    """Train and evaluate what is missing in a study's folder, in so many processes.

    Where `jobs` is None, that is one per GPU, or per core where there is none.

    Args:
        study: the study.
        folder: where it lies.
        jobs: how many processes.
        progress: hears what is done.
        cache: where the language models' activations are kept, if anywhere.

    Raises:
        SaePluginsError: the study is wrong, or a folder is in use, or cannot be written to, or has
            no room.
    """
    folder = folder.absolute()
    plan_of(study, folder)  # which refuses what is wrong before there is a folder
    if ranks().size > 1:
        jobs = 1 if visible() else ranks().beside
    jobs = jobs or default_jobs(len(study.models) * len(study.seeds))
    with _locked(folder) if ranks().writes else nullcontext():
        with ranks().together():
            begun = _begun(study, folder, jobs, progress, cache) if ranks().writes else study
        study = Study.model_validate_json(ranks().first(begun.model_dump_json()))
        known = plan_of(study, folder)
        with ranks().together():
            check_division([*known.pilots, *known.cells])
            check_devices([*known.pilots, *known.cells], jobs)
        # by the first pilots, the coefficients are known with which others try learning rates
        waiting = _waiting(known := plan_of(study, folder), folder)
        while waiting:
            progress.expect(len(waiting))
            _run_passes(_passes(study, folder, waiting, jobs, cache), jobs, progress)
            before = [cell.folder for cell in waiting]
            waiting = _waiting(known := plan_of(study, folder), folder)
            if [cell.folder for cell in waiting] == before:
                raise SaePluginsError(
                    "no pilot was trained: code or data have changed since the study began; run "
                    "it again"
                )
        progress.expect(sum(1 + len(study.models[cell.model].suites) for cell in known.cells))
        _run_passes(_passes(study, folder, known.cells, jobs, cache), jobs, progress)
        if ranks().writes:
            every = [*known.pilots, *known.cells]
            missing = [cell.folder.name for cell in every if cell.summary(folder) is None]
            discard_others(folder / CHECKPOINTS, missing)


def _run_passes(tasks: list[Pass], jobs: int, progress: Progress) -> None:
    """Do the tasks, in so many processes, or together with other ranks."""
    if ranks().size == 1:
        run_passes(work, tasks, jobs, progress)
        return
    for task in tasks:  # whose language model and arms the ranks share
        _work(task, progress, evaluates=False)
        ranks().patiently()  # all SAEs are in their places
    with ranks().together():  # in which none asks another
        for task in tasks[ranks().rank :: ranks().size]:
            if not task.pilots:
                _work(task, progress, trains=False)


def _begun(study: Study, folder: Path, jobs: int, progress: Overall, cache: Folder | None) -> Study:
    """The study as its folder has it, once all is there that its passes need."""
    naming.remember(study, folder, results=(folder / EVALUATIONS).exists())
    told, study = plugin_files.kept(study, folder)
    write(folder / STUDY, as_yaml(told))  # as it was run last
    commits.look_up(study, folder)
    known = plan_of(study, folder)
    scored.check([cell for cell in known.cells if cell.source], folder)
    if cache is not None:
        progress.say(_planned(study, known, folder, jobs, cache))
    for cell in known.pilots:  # what has failed is tried again, once
        _failed(cell, folder).unlink(missing_ok=True)
    return study


def _waiting(known: StudyPlan, folder: Path) -> list[Cell]:
    """The pilots that are to be trained."""
    return [
        cell
        for cell in known.pilots
        if cell.summary(folder) is None and failure(cell, folder) is None
    ]


def _planned(study: Study, known: StudyPlan, folder: Path, jobs: int, cache: Folder) -> str:
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
    found = [one for each in expected(runs, _threads(jobs)) for one in each]
    return f"activations: {plan(found, cache)}"


def _following(study: Study, pilot: Cell) -> SAELensSettings:
    """What the cells that follow a pilot read, as settings of one."""
    model, settings = study.models[pilot.model], pilot.settings.for_saelens()
    if model.exact_l0 is False:
        return settings
    tokens = int(model.train.get("calibrate_tokens") or tokens_after(pilot.settings))
    return replace(settings, following_tokens=tokens, unseen_tokens=tokens)


def check_suites(study: Study) -> None:
    """Refuse suites, settings and metrics that there are not, and suites that cannot be run."""
    from sae_plugins.eval_suites import registry

    problems = Problems()
    for name, model in study.models.items():
        for suite in model.suites:
            with problems:
                registry.check_installed(suite_of(study, name, suite)[0])
    with problems:
        check_compared(study)
    problems.stop()


def undefined(study: Study, model: str, name: str) -> Collection[str]:
    """The metrics of a suite that mean nothing on a model of a study."""
    on = shared_flags(model, study.models[model]).get("model_name") or WORLD
    found: Collection[str] = suite_of(study, model, name)[0].undefined_on(on)
    return found


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


def _passes(
    study: Study, folder: Path, cells: list[Cell], jobs: int, cache: Folder | None
) -> list[Pass]:
    """A task for each model and seed, for `jobs` processes."""
    text = study.model_dump_json()
    return [
        Pass(text, folder, model, seed, _pilots(members), sharing(jobs), _threads(jobs), cache)
        for (model, seed), members in grouped(cells, lambda c: (c.model, c.seed)).items()
    ]


def _pilots(cells: Sequence[Cell]) -> frozenset[str]:
    return frozenset(cell.folder.name for cell in cells if cell.pilot)


# -- one process ---------------------------------------------------------------------------------


def work(task: Pass, progress: Progress) -> None:
    """Train the missing SAEs of one model and seed, and evaluate them."""
    if task.threads is not None:
        import torch

        torch.set_num_threads(task.threads)
    _work(task, progress)


def _work(task: Pass, progress: Progress, trains: bool = True, evaluates: bool = True) -> None:
    study = Study.model_validate_json(task.study)
    known = plan_of(study, task.folder)
    cells = [
        cell
        for cell in (known.pilots if task.pilots else known.cells)
        if (cell.model, cell.seed) == (task.model, task.seed)
        and (not task.pilots or cell.folder.name in task.pilots)
    ]
    existing = [cell for cell in cells if cell.source]
    shared: Setup | None = None
    if trains:
        missing = [cell for cell in cells if not cell.source and cell.summary(task.folder) is None]
        progress.advance(len(cells) - len(missing) - len(existing))
        shared = _train(missing, task, progress)
    if not evaluates:
        return
    done = scored.score(existing, task, progress, shared)
    for cell, error in done.items():
        _note(cell, task.folder, error)
    if not task.pilots:
        there = [cell for cell in cells if done.get(cell) is None]
        trained = [cell for cell in there if cell.summary(task.folder) is not None]
        skipped = len(cells) - len(trained)
        progress.advance(skipped * len(study.models[task.model].suites))
        evaluate(study, trained, task, progress)


def _train(cells: Sequence[Cell], task: Pass, progress: Progress) -> Setup | None:
    """In lockstep, as many as see the same batches; a failure is written beside its folder.

    Returns:
        A setup of theirs, if there is one.
    """
    from sae_plugins.runs.lockstep import without_frames
    from sae_plugins.runs.stream_key import stream_key

    shared: Setup | None = None
    ranks().same("the SAEs that are missing", {"their names": [c.folder.name for c in cells]})
    for members in grouped(cells, lambda cell: stream_key(cell.settings.for_saelens())).values():
        progress.stage(f"{task.model}, seed {task.seed}: training {len(members)} SAEs")
        arms: dict[Cell, LockstepRun] = {}
        failures: dict[Cell, Exception] = {}
        for cell in members:
            try:
                arms[cell] = arm = _arm(cell, task, shared)
            except Exception as error:
                failures[cell] = without_frames(error)
            else:
                shared = arm.setup
        agree(arms, failures)
        for cell, reason in failures.items() if ranks().writes else ():
            _note(cell, task.folder, reason)
        failed = _train_together(arms, task, progress)
        progress.advance(len(failures))
        for cell, arm in arms.items():
            if arm.name in failed:
                _note(cell, task.folder, failed[arm.name])
    return shared


def _arm(cell: Cell, task: Pass, shared: Setup | None) -> LockstepRun:
    """A cell's SAE, ready to train where there is room for it; `shared` has a model that may serve.

    Raises:
        Exception: its settings are wrong, or its folder is taken.
    """
    from sae_plugins.runs.load import load_setup
    from sae_plugins.runs.lockstep import LockstepRun
    from sae_plugins.settings.run_yaml import recipe_of

    settings, folder = cell.settings, task.folder / cell.folder
    wanted = replace(settings.for_saelens(), activation_cache=task.cache)
    folder.parent.mkdir(parents=True, exist_ok=True)  # also of what says why it failed
    setup = shared.sharing(wanted) if shared else load_setup(wanted)
    recipe = recipe_of(settings, setup)
    if ranks().writes:
        _make_room(folder)
    return LockstepRun(
        name=cell.folder.name,
        setup=setup,
        folder=folder,
        plan=settings.plan,
        recipe=recipe,
        made_from=cell.told,
        figures=False,  # the report has those of all
        untrained=cell.untrained,
        tuning_tokens=cell.tuning_tokens,
    )


def _train_together(
    arms: Mapping[Cell, LockstepRun], task: Pass, progress: Progress
) -> dict[str, Exception]:
    """Train arms that see the same batches; what ended those that failed, by name."""
    from sae_plugins.runs.lockstep import Kept, train

    cells = {arm.name: cell for cell, arm in arms.items()}

    def succeeded(arm: LockstepRun) -> None:
        _note(cells[arm.name], task.folder, None)

    saes, kept = [*arms.values()], Kept(task.folder / CHECKPOINTS)
    try:
        told = _steps(len(saes), progress)
        return train(saes, told, succeeded, task.processes, kept) if saes else {}
    except Exception as error:  # of what they share: the language model, or its text
        if ranks().size > 1:  # and with other ranks
            raise
        return {arm.name: error for arm in saes if not arm.folder.exists()}


def _steps(saes: int, progress: Progress) -> Callable[[int, int], None]:
    """Turns steps that are done into shares of so many SAEs."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = 100 * done // total  # a message per cent
        if now > told:
            progress.advance(saes * (now - told) / 100)
            told = now

    return tell


def _make_room(folder: Path) -> None:
    """Remove a run without a summary, which is not whole, from where a new one will lie.

    Raises:
        SaePluginsError: files of others are there.
    """
    remove_run(folder)
    if folder.exists():
        raise SaePluginsError(f"{folder} holds no whole run, but files of others: move them away")
    folder.parent.mkdir(parents=True, exist_ok=True)


def _failed(cell: Cell, folder: Path) -> Path:
    path = folder / cell.folder
    return path.with_name(path.name + FAILED)


def _note(cell: Cell, folder: Path, error: Exception | None) -> None:
    """Write why a cell has failed beside its folder; nothing is left there if it has not."""
    if error is None:
        _failed(cell, folder).unlink(missing_ok=True)
    else:
        _failed(cell, folder).parent.mkdir(parents=True, exist_ok=True)
        write(_failed(cell, folder), f"{without_places(reason_of(error))}\n")


def failure(cell: Cell, folder: Path) -> str | None:
    """Why a cell's SAE is not there, if training it was tried."""
    return None if cell.summary(folder) is not None else failed_since(cell, folder)


def failed_since(cell: Cell, folder: Path) -> str | None:
    """Why a cell's SAE could not be had the last time, whether or not it is there from before."""
    try:
        return _failed(cell, folder).read_text("utf-8").strip()
    except OSError:
        return None


def stale(known: StudyPlan, folder: Path) -> list[Path]:
    """Runs in the folder that are no part of the study any more, after something was changed."""
    names = {folder / cell.folder for cell in (*known.cells, *known.pilots)}
    found = {file.parent for name in (RECIPE, ORIGIN) for file in folder.glob(f"{SAES}/*/*/{name}")}
    return sorted(found - names)
