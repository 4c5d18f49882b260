"""The evaluations of a study's SAEs, a folder for each model and seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import prefixed
from sae_plugins.base.files import read_json, write
from sae_plugins.base.fingerprints import of_value
from sae_plugins.eval_suites.evaluation.manifest import PARTS, parts
from sae_plugins.study.cells import Cell
from sae_plugins.study.progress import Progress
from sae_plugins.study.spec import Study
from sae_plugins.study.tasks import Task

EVALUATIONS = "evaluations"
HASHES = "saes.json"
"""In an evaluation's folder: the SAEs' hashes, by the names of their folders."""


def suite_of(study: Study, model: str, name: str) -> tuple[Any, Any]:
    """A suite with its settings on a model.

    Raises:
        SaePluginsError: there is none, or a setting is wrong.
    """
    from sae_plugins.eval_suites import registry

    spec = study.models[model]
    with prefixed(f"models.{model}.suites.{name}"):
        suite = registry.load(name)
        return suite, suite.settings(spec.preset, spec.suites[name])


def evaluations(folder: Path, model: str, seed: int) -> Path:
    """Where the results of a model's and a seed's SAEs are."""
    return folder / EVALUATIONS / model / f"seed{seed}"


def evaluate(study: Study, cells: Sequence[Cell], task: Task, progress: Progress) -> float | None:
    """Evaluate SAEs of a model and a seed; what is there already is read.

    Returns:
        The seconds that the SAEs took by themselves, if none had been evaluated before.
    """
    from sae_plugins.eval_suites.evaluation.evaluate import Evaluation, Request
    from sae_plugins.eval_suites.inputs.cache import default_folder

    model = study.models[task.model]
    if not cells:
        return None
    name = f"{task.model}, seed {task.seed}"
    progress.stage(f"{name}: evaluating {len(cells)} SAEs")
    folder = evaluations(task.folder, task.model, task.seed)
    sources = {cell.folder.name: cell.source or str(task.folder / cell.folder) for cell in cells}
    request = Request(
        sources=[*sources.values()],
        suites={suite: suite_of(study, task.model, suite) for suite in task.suites},
        seeds=[model.evaluation_seed],
        preset=model.preset,
        output_path=folder,
        cache_path=default_folder(),
        data=model.data,
        device=cells[0].settings.for_saelens().device,
        part=of_value(sorted(task.claims))[:12],
    )
    evaluation = Evaluation(request)
    loaded = evaluation.hashes
    found = {name: loaded[source] for name, source in sources.items() if source in loaded}
    part = folder / PARTS / request.part
    part.mkdir(parents=True, exist_ok=True)
    write(part / HASHES, json.dumps(found, indent=1) + "\n")
    heard = _EvaluationProgress(name, progress)
    evaluation.run(heard)
    # two SAEs that are the same have one row
    progress.advance(len(cells) * len(task.suites) - len(evaluation.rows))
    results = [result for _, result in evaluation.output.results(evaluation.rows)]
    return None if heard.any_again else sum(result.seconds or 0 for result in results)


def merge(folder: Path) -> None:
    """Make one evaluation of what several tasks have written into a folder of results."""
    from sae_plugins.eval_suites.evaluation.folder import Folder

    if not (folder / PARTS).is_dir():
        return
    write(folder / HASHES, json.dumps(hashes_in(folder), indent=1) + "\n")
    Folder(folder).merge()


def hashes_in(folder: Path) -> dict[str, str]:
    """The hashes of the SAEs in an evaluation's folder, by the names of their own folders."""
    found: dict[str, str] = {}
    for file in (folder / HASHES, *(part / HASHES for part in parts(folder))):
        with suppress(OSError, ValueError):
            found |= read_json(file)
    return found


@dataclass
class _EvaluationProgress:
    """What an evaluation tells, told as a study's progress."""

    name: str
    progress: Progress
    any_again: bool = False

    def stage(self, text: str) -> None:
        self.progress.stage(f"{self.name}: {text}")

    def finished(self, row: Any, again: bool) -> None:
        self.any_again |= again
        self.progress.advance(1)
