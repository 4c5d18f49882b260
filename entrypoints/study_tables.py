"""What `sae-plugins study` prints: a plan, what it can find, and what it found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sae_plugins.study.findings import Findings
    from sae_plugins.study.plan import StudyPlan
    from sae_plugins.study.prospects import Prospect
    from sae_plugins.study.spec import Study

_FEW = 24
"""Comparisons, of all of which the effects are printed."""


def print_plan(study: Study, known: StudyPlan, folder: Path) -> None:
    """A table of the arms: how many SAEs there are to be, and how many there are."""
    from sae_plugins.study.cells import grouped
    from sae_plugins.study.failures import failure

    cells = [*known.pilots, *known.cells]
    failures = {cell: reason for cell in cells if (reason := failure(cell, folder))}
    numbers = ("SAEs", "there", "failed")
    table = _table(str(folder), "model", "arm", "sparsities", *numbers, right=numbers)
    for (model, arm), members in grouped(cells, lambda cell: (cell.model, cell.arm)).items():
        trained = sum(cell.summary(folder) is not None for cell in members)
        failed = sum(cell in failures for cell in members)
        values = dict.fromkeys(cell.sparsity or "as it is" for cell in members if not cell.pilot)
        shown = ", ".join(values) or "found by pilots"
        if any(cell.source for cell in members):
            shown = f"{shown} (not trained here)"
        reference = " (reference)" if arm == study.reference else ""
        pilots = sum(cell.pilot for cell in members)
        counts = {"": len(members) - pilots, " pilots": pilots}
        wanted = ", ".join(f"{count}{kind}" for kind, count in counts.items() if count)
        table.add_row(model, f"{arm}{reference}", shown, wanted, str(trained), str(failed or ""))
    Console().print(table)
    for cell, reason in failures.items():
        print(f"failed: {cell.folder}: {reason}")
    seeds = ", ".join(str(seed) for seed in study.seeds)
    passes = len({(cell.model, cell.seed) for cell in cells})
    count = f"{passes} pass{'es' if passes != 1 else ''}"
    print(f"seeds {seeds}; {count} through the data, each for all of its SAEs")
    for model, spec in study.models.items():
        print(f"{model}: evaluated by {', '.join(spec.suites) or 'no suite'}")
    for warning in known.warnings:
        print(f"warning: {warning}")


def print_living(folder: Path) -> None:
    """The tasks that are at work, on whatever machine."""
    from sae_plugins.study.told import living

    for told in living(folder).values():
        minutes = told.seconds / 60
        print(f"at work on {told.host} for {minutes:.0f} min: {told.stage or told.about}")


def print_stale(known: StudyPlan, folder: Path) -> None:
    from sae_plugins.study.execute import stale

    if old := stale(known, folder):
        print(
            f"{len(old)} SAEs in {folder / 'saes'} are made from other settings, data or code than "
            f"this study's, and are not used: {old[0].name}{', ...' if len(old) > 1 else ''}"
        )
    for change, count in known.changes.items():
        print(f"{count} SAE{'s are' if count > 1 else ' is'} to be trained again: {change}")


def print_prospects(found: Sequence[Prospect], seeds: int) -> None:
    """What differences a study can find, by metric."""
    for family in dict.fromkeys(one.family for one in found):
        one = min((x for x in found if x.family == family), key=lambda x: x.effect)
        tests = f"{'' if family == 'all' else f'{family}: '}{one.comparisons} comparison"
        print(
            f"{tests}{'s' if one.comparisons > 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}: "
            + (
                f"a difference of {one.effect:.3g} SD of the seeds' noise is found with 80% power"
                if math.isfinite(one.effect)
                else "too few for a verdict"
            )
        )
    known = any(one.noise is not None for one in found)
    measured = ("noise", "seeds that find what matters") if known else ()
    table = _table("", "model", "metric", "least that matters", "least that is found", *measured)
    for one in found:
        table.add_row(*_prospect(one)[: len(table.columns)])
    if found:
        Console().print(table)
    if found and not known:
        print("the noise is not known yet; --noise_from FOLDER takes it from an earlier study")


def _prospect(one: Prospect) -> Sequence[str]:
    from sae_plugins.study.words import number

    metric = f"{one.metric.suite}/{one.metric.name}"
    family = "" if one.family == "all" else f" ({one.family})"
    detects = f"{one.effect:.3g} SD" if one.detectable is None else number(one.detectable)
    if math.isinf(one.effect):
        detects = "nothing"
    needed = "unknown" if one.noise is None or one.metric.margin is None else one.seeds or "> 100"
    return (
        one.model,
        metric + family,
        number(one.metric.margin),
        detects + (", underpowered" if one.underpowered else ""),
        "unknown" if one.noise is None else number(one.noise),
        str(needed),
    )


def print_verdicts(findings: Findings) -> None:
    """How many verdicts of each kind every arm has got, and the effects that count."""
    from sae_plugins.study.facts import Facts
    from sae_plugins.study.statistics import Verdict
    from sae_plugins.study.words import DECIDED, difference, marked, number

    given = {contrast.comparison.verdict for contrast in findings.contrasts}
    words = [word for word in get_args(Verdict) if word in given]
    counts: dict[str, Counter[str]] = {}
    for contrast in findings.contrasts:
        counts.setdefault(contrast.arm, Counter())[contrast.comparison.verdict] += 1
    table = _table(f"against {findings.study.reference}, at equal L0", "arm", *words, right=words)
    for arm, count in counts.items():
        table.add_row(arm, *(str(count[word] or "") for word in words))
    effects = _table("effects", "arm", "metric", "verdict", "difference [95% interval]", "d_z")
    few = len(findings.contrasts) <= _FEW
    models, facts = len(findings.study.models), Facts(findings, Path())
    labels = {
        (model, metric.suite, metric.name): facts.label(model, metric)
        for model, metrics in findings.metrics.items()
        for metric in metrics
    }
    for contrast in sorted(findings.contrasts, key=lambda contrast: [*counts].index(contrast.arm)):
        found = contrast.comparison
        if few or found.verdict in (*DECIDED, "equivalent") or contrast.family == "primary":
            model = f"{contrast.model}: " if models > 1 else ""
            metric = model + labels[contrast.model, contrast.suite, contrast.metric]
            effect = number(found.effect_size, "+")
            but = facts.exceptions[contrast.model, contrast.arm, contrast.suite, contrast.metric]
            verdict = f"{marked(found)} {but}".strip()
            effects.add_row(contrast.arm, metric, verdict, difference(found), effect)
    for shown in (table, effects):
        if shown.row_count:
            Console().print(shown)
    if not few:
        print("verdicts.csv has the effects of all comparisons")
    for warning in findings.warnings:
        print(f"warning: {warning}")


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
