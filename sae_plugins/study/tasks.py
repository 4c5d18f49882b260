"""The tasks of a study: what one process does, and into how many the work is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from sae_plugins.base.kept import Folder
from sae_plugins.resume.together import CHECKPOINTS, Kept
from sae_plugins.study.cells import Cell, grouped
from sae_plugins.study.progress import Progress
from sae_plugins.study.spec import Study
from sae_plugins.study.told import reports

T = TypeVar("T")

_GOOD = 1.1
"""Fewer tasks are better than more that end this much sooner."""
_SHARED_IN_TRAINING = {True: 0.6, False: 8.0}
"""What a task's SAEs share, in SAEs that train, on synthetic models and on others, as measured on a
toy and SmolLM2-135M; until tasks of the study itself tell it."""
_SHARED_IN_EVALUATION = 2.0
"""The same of evaluations: loading the language model, and what a suite prepares."""


@dataclass(frozen=True)
class Task:
    """Some SAEs of one model and seed, to train or to evaluate.

    Attributes:
        study: as JSON.
        folder: the study's.
        model: the study's name of the model.
        seed: the training's.
        saes: the names of the SAEs' folders.
        suites: evaluate them by these; none for training them.
        processes: how many there may be at once that share its memory, this one included.
        threads: of torch; None for as many as it likes.
        cache: where the language models' activations are kept.
    """

    study: str
    folder: Path
    model: str
    seed: int
    saes: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    processes: int = 1
    threads: int | None = None
    cache: Folder | None = None

    @property
    def about(self) -> str:
        """What it does, for readers."""
        does = f"evaluating by {', '.join(self.suites)}" if self.suites else "training"
        return f"{self.model}, seed {self.seed}: {does}"

    @property
    def claims(self) -> list[str]:
        """The names of all that it does."""
        return [name for sae in self.saes for name in self.claims_of(sae)]

    def claims_of(self, sae: str) -> list[str]:
        """The names of what it does with one SAE, which no other task may do at once."""
        return [f"{self.model}/{sae}/{suite}" for suite in self.suites or ("",)]


Work = Callable[[Task, Progress], Mapping[str, Any]]
"""A function of a module, which any process can import; it returns `Report.facts`."""


@dataclass(frozen=True)
class Cutter:
    """Cuts a study's work into tasks that keep so many workers busy.

    Attributes:
        study: the study.
        alike: a task of which all others are copies.
        workers: how many tasks are done at once.
    """

    study: Study
    alike: Task
    workers: int

    def training(self, cells: Sequence[Cell]) -> list[Task]:
        """Tasks that train SAEs, or score those that exist.

        Those that were interrupted together go on together, from their checkpoint.
        """
        begun: dict[str, str] = {}
        wanted = {cell.folder.name for cell in cells}
        for place, names in Kept(self.alike.folder / CHECKPOINTS).begun(wanted):
            begun |= dict.fromkeys(names, place.folder.name)
        passes = grouped(
            cells, lambda cell: (cell.model, cell.seed, begun.get(cell.folder.name, ""))
        )
        measured = self._measured("training")
        counts = []
        for (model, *_), members in passes.items():
            shared = measured.get(model) or _SHARED_IN_TRAINING[members[0].settings.is_synthetic]
            counts.append(pieces(len(passes), len(members), shared, self.workers))
        idle = max(0, self.workers - sum(counts))
        return [
            replace(self.alike, model=model, seed=seed, saes=tuple(c.folder.name for c in group))
            for number, ((model, seed, together), members) in enumerate(passes.items())
            for group in cut(members, 1 if together else counts[number] + (number < idle))
        ]

    def evaluating(self, task: Task, passes: int) -> list[Task]:
        """Tasks that evaluate what one of so many tasks has trained; none follow from these."""
        suites = tuple(self.study.models[task.model].suites)
        if task.suites or not suites:
            return []
        shared = self._measured("evaluation").get(task.model) or _SHARED_IN_EVALUATION
        count = pieces(passes, len(task.saes), shared, self.workers)
        apart = [(suite,) for suite in suites] if passes * count < self.workers else [suites]
        return [
            replace(task, saes=tuple(group), suites=of_one)
            for group in cut(task.saes, count)
            for of_one in apart
        ]

    def _measured(self, what: str) -> dict[str, float]:
        """What a task's SAEs share, in what one takes, as earlier tasks have told it, by model."""
        told = (one.facts.get("costs") for one in reports(self.alike.folder).values())
        known = [one for one in told if one and one["what"] == what and one["each"] > 0]
        return {
            model: median(one["shared"] / one["each"] for one in of_model)
            for model, of_model in grouped(known, lambda one: str(one["model"])).items()
        }


def costs(model: str, what: str, shared: float, own: float, saes: int) -> dict[str, Any]:
    """What a task tells of its costs.

    Args:
        model: the study's name of it.
        what: "training" or "evaluation".
        shared: seconds that do not depend on how many SAEs there are.
        own: seconds for the SAEs alone.
        saes: how many there were.
    """
    return {"costs": {"model": model, "what": what, "shared": shared, "each": own / max(1, saes)}}


def pieces(passes: int, items: int, shared: float, workers: int) -> int:
    """Into how many tasks each of some passes is cut, so that all of them end soon.

    Args:
        passes: how many there are, all alike.
        items: in each.
        shared: what a task costs besides its items, in what one item costs. A language model's
            work is of that kind: all SAEs of a task share it, and each task repeats it.
        workers: how many tasks are done at once.

    Returns:
        The smallest number with which all is done almost as soon as it can be.
    """

    def takes(count: int) -> float:
        return -(-passes * count // workers) * (shared + -(-items // count))

    best = min(map(takes, range(1, items + 1)), default=0.0)
    return next((n for n in range(1, items + 1) if takes(n) <= _GOOD * best), 1)


def cut(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Items in so many groups of about the same size, and of neighbours of every kind."""
    return [items[first::count] for first in range(min(count, len(items)))]
