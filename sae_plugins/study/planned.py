"""The plan of a study, as far as its folder says it, and what is wrong in it."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from sae_plugins.base.errors import Problems, prefixed
from sae_plugins.eval_suites.evaluation.sources import check_source
from sae_plugins.study import commits
from sae_plugins.study.cells import Cell
from sae_plugins.study.evaluated import suite_of
from sae_plugins.study.failures import failure
from sae_plugins.study.makers import shared_flags
from sae_plugins.study.metrics import check_compared
from sae_plugins.study.plan import StudyPlan, plan
from sae_plugins.study.spec import Study
from sae_plugins.world import NAME as WORLD


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
