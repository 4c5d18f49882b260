"""What one process of a study does: it trains SAEs in lockstep, or evaluates them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.machine_faults import is_of_machine
from sae_plugins.base.ranks import ranks
from sae_plugins.resume.together import CHECKPOINTS
from sae_plugins.runs.folder import remove_run
from sae_plugins.study import scored
from sae_plugins.study.cells import Cell, grouped
from sae_plugins.study.evaluated import evaluate
from sae_plugins.study.failures import failed_since, note
from sae_plugins.study.planned import plan_of
from sae_plugins.study.progress import Progress
from sae_plugins.study.sharing import agree
from sae_plugins.study.spec import Study
from sae_plugins.study.tasks import Task, costs

if TYPE_CHECKING:
    from pathlib import Path

    from sae_plugins.runs.lockstep import LockstepRun
    from sae_plugins.runs.setup import Setup


def work(task: Task, progress: Progress) -> Mapping[str, Any]:
    """Do a task; what is told of its costs."""
    if task.threads is not None:
        import torch

        torch.set_num_threads(task.threads)
    cells = _cells(task)
    if task.suites:
        return _evaluate(cells, task, progress)
    spent, trained = list[float](), len(_missing(cells, task.folder))
    started = time.monotonic()
    shared = _train(cells, task, progress, spent.append)
    passed = time.monotonic() - started
    if ranks().size == 1:
        _score(cells, task, progress, shared)
    if shared is None:
        return {}
    own = sum(spent)
    return costs(task.model, "training", passed - own, own, trained)


def score(task: Task, progress: Progress) -> None:
    """Score those SAEs of a task that exist already: several ranks train together, and then not."""
    _score(_cells(task), task, progress)


def _cells(task: Task) -> list[Cell]:
    """The task's SAEs.

    Raises:
        SaePluginsError: one is not in the plan as this machine makes it.
    """
    known = plan_of(Study.model_validate_json(task.study), task.folder)
    found = {
        cell.folder.name: cell
        for cell in (*known.pilots, *known.cells)
        if (cell.model, cell.seed) == (task.model, task.seed)
    }
    if lost := [name for name in task.saes if name not in found]:
        raise SaePluginsError(
            f"{task.about}: on {socket.gethostname()}, {lost[0]} is no SAE of the study: code, "
            "data or versions are others there, or have changed since it began; have them the same "
            "everywhere, and run it again"
        )
    return [found[name] for name in task.saes]


def _missing(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Those that are to be trained."""
    return [cell for cell in cells if not cell.source and cell.summary(folder) is None]


def _evaluate(cells: Sequence[Cell], task: Task, progress: Progress) -> Mapping[str, Any]:
    """Evaluate what could be trained, or loaded."""
    study, started = Study.model_validate_json(task.study), time.monotonic()
    there = [
        cell
        for cell in cells
        if cell.summary(task.folder) is not None
        and not (cell.source and failed_since(cell, task.folder))
    ]
    progress.advance((len(cells) - len(there)) * len(task.suites))
    own = evaluate(study, there, task, progress)
    passed = time.monotonic() - started
    if own is None:
        return {}
    return costs(task.model, "evaluation", passed - own, own, len(there))


def _score(
    cells: Sequence[Cell], task: Task, progress: Progress, shared: Setup | None = None
) -> None:
    """Score what exists already; `shared` has a model that may serve."""
    existing = [cell for cell in cells if cell.source]
    for cell, error in scored.score(existing, task, progress, shared).items():
        note(cell, task.folder, error)


def _train(
    cells: Sequence[Cell], task: Task, progress: Progress, timed: Callable[[float], None]
) -> Setup | None:
    """Train what is missing in lockstep, as many as see the same batches.

    A failure is written beside its folder. `timed` is told of the seconds of the SAEs alone.

    Returns:
        A setup of theirs, if there is one.
    """
    from sae_plugins.runs.lockstep import without_frames
    from sae_plugins.runs.stream_key import stream_key

    shared: Setup | None = None
    missing = _missing(cells, task.folder)
    progress.advance(sum(not cell.source for cell in cells) - len(missing))
    ranks().same("the SAEs that are missing", {"their names": [c.folder.name for c in missing]})
    for members in grouped(missing, lambda cell: stream_key(cell.settings.for_saelens())).values():
        progress.stage(f"{task.model}, seed {task.seed}: training {len(members)} SAEs")
        arms: dict[Cell, LockstepRun] = {}
        failures: dict[Cell, Exception] = {}
        for cell in members:
            try:
                arms[cell] = arm = _arm(cell, task, shared)
            except Exception as error:
                if is_of_machine(error):
                    raise
                failures[cell] = without_frames(error)
            else:
                shared = arm.setup
        agree(arms, failures)
        for cell, reason in failures.items() if ranks().writes else ():
            note(cell, task.folder, reason)
        failed = _train_together(arms, task, progress, timed)
        progress.advance(len(failures))
        for cell, arm in arms.items():
            if arm.name in failed:
                note(cell, task.folder, failed[arm.name])
    return shared


def _arm(cell: Cell, task: Task, shared: Setup | None) -> LockstepRun:
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
    arms: Mapping[Cell, LockstepRun],
    task: Task,
    progress: Progress,
    timed: Callable[[float], None],
) -> dict[str, Exception]:
    """Train arms that see the same batches; what ended those that failed, by name."""
    from sae_plugins.runs.lockstep import Kept, train

    cells = {arm.name: cell for cell, arm in arms.items()}

    def succeeded(arm: LockstepRun) -> None:
        note(cells[arm.name], task.folder, None)

    saes, kept = [*arms.values()], Kept(task.folder / CHECKPOINTS)
    try:
        told = _steps(len(saes), progress)
        return train(saes, told, succeeded, task.processes, kept, timed) if saes else {}
    except Exception as error:  # of what they share: the language model, or its text
        if ranks().size > 1 or is_of_machine(error):  # and with other ranks
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
