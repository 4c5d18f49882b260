"""The report of a study: one HTML page that needs no network, and the same as Markdown, CSV, PNG.

`Findings` say what to show; the runs' own folders add training curves, feature order and
redundancy. Everything is averaged over seeds before it is drawn, so that the page stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sae_plugins.base import text as base_text
from sae_plugins.base import yaml_files
from sae_plugins.base.files import write as write_file
from sae_plugins.base.text import as_csv
from sae_plugins.runs.folder import FIGURES
from sae_plugins.study import equal_l0, latex, reading, sections, unmatched
from sae_plugins.study.conclusions import answers, summary
from sae_plugins.study.facts import Facts
from sae_plugins.study.findings import ArmInfo, Contrast, Findings, ReportedMetric, Trained
from sae_plugins.study.metrics import OF_PAPERS
from sae_plugins.study.spec import Family, Kind
from sae_plugins.study.statistics import Comparison
from sae_plugins.study.words import (
    DECIDED,
    MARKS,
    Table,
    difference,
    grid,
    limits,
    marked,
    mean_interval,
    number,
    p,
    span,
)

HTML, MARKDOWN = "report.html", "report.md"
VERDICTS, SCORES, DETAILS = "verdicts.csv", "scores.csv", "details.csv"
LATEX = "verdicts.tex"

_KINDS: Mapping[Kind, str] = {
    "method": "Methods",
    "ours": "Ours",
    "baseline": "Baselines",
    "control": "Controls",
}


def write(findings: Findings, folder: Path, formats: tuple[str, ...] = ()) -> Path:
    """Write the report of a study into its folder, in place of an earlier one; the HTML page.

    Args:
        findings: what it says.
        folder: the study's.
        formats: of figures, besides PNG: "pdf", "svg".
    """
    from plotly.offline import get_plotlyjs

    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for name, text in _tables(findings):
        write_file(folder / name, text)
    facts = Facts(findings, folder, formats)
    write_file(folder / LATEX, latex.verdicts(facts))
    view = {**_view(facts), "plotlyjs": Markup(get_plotlyjs())}
    # Markdown first: whoever sees a new page finds everything else new, too
    for name, environment in (
        (MARKDOWN, _environment(autoescape=False, finalize=base_text.as_markdown)),
        (HTML, _environment(autoescape=True)),
    ):
        write_file(folder / name, environment.get_template(name).render(view))
    return folder / HTML


_Found = tuple[Comparison | None, Family | None, str]


@dataclass(frozen=True)
class Verdicts:
    """The verdict table of one model, with a column for each metric."""

    model: str
    metrics: Sequence[ReportedMetric]
    reference: Sequence[str]
    """The reference's scores at its middle sparsity."""
    groups: Sequence[tuple[str, Sequence[tuple[ArmInfo, Sequence[_Found]]]]]
    """Arms by kind; for each metric a comparison, its family, and at which L0s it is not so.

    None where there is none.
    """
    notes: Sequence[tuple[str, str]]
    """Reasons of no verdict and warnings, after what they are about."""


def _view(facts: Facts) -> dict[str, Any]:
    findings, models = facts.findings, facts.models
    study = findings.study.model_dump(mode="json", exclude_defaults=True)
    return {
        "findings": findings,
        "study": findings.study,
        "reference": facts.reference,
        "arms": list(facts.arms.values()),
        "models": _models(facts),
        "metrics": _metrics(facts),
        "looks": facts.looks,
        "shown": facts.shown,
        "lead": reading.lead(facts),
        "reading": list(reading.lines(facts)),
        "where": reading.where(facts),
        "marks": MARKS,
        "answers": answers(facts),
        "verdicts": [_verdicts(facts, model) for model in models],
        "by_l0": [table for model in models if (table := equal_l0.differences(facts, model))],
        "numbers": [_numbers(facts, model) for model in models],
        "forests": [s for model in models if (s := sections.forests(facts, model)).pictures],
        "frontiers": [sections.frontiers(facts, model) for model in models],
        "items": sections.items(facts),
        "rates": [s for model in models if (s := sections.learning_rates(facts, model)).pictures],
        "searches": [table for model in models for table in sections.searches(facts, model)],
        "exact": [table for model in models if (table := equal_l0.table(facts, model))],
        "curves": [sections.curves(facts, model) for model in models],
        "orders": [sections.orders(facts, model) for model in models],
        "redundancy": [sections.redundancy(facts, model) for model in models],
        "papers": [table for model in models if (table := _paper(facts, model))],
        "unmatched": [table for model in models if (table := unmatched.table(facts, model))],
        "saes": [_saes(facts, model) for model in models],
        "existing": [table for model in models if (table := _existing(facts, model))],
        "middle_l0": facts.middle_l0,
        "decided": DECIDED,
        "yaml": _yaml(study),
        "provenance": _yaml(findings.provenance),
        "unreliable": dict.fromkeys(
            m.unreliable for found in findings.metrics.values() for m in found if m.unreliable
        ),
        "files": (VERDICTS, SCORES, DETAILS, LATEX),
    }


def _models(facts: Facts) -> list[tuple[str, str]]:
    """What each model is, and the SAEs that are trained on it."""
    found = []
    for name, one in facts.findings.models.items():
        widths, lengths = (
            " or ".join(f"{n:,}" for n in each) for each in (one.d_sae, one.training_tokens)
        )
        parts = (
            one.name + (f", {one.what}" if one.what else ""),
            one.true_l0 and f"true L0 {number(one.true_l0)}",
            one.hook_name and f"hook {one.hook_name}",
            one.d_in and f"d_in {one.d_in:,}",
            widths and f"d_sae {widths}",
            lengths and f"SAEs trained on {lengths} {facts.unit(name)}",
        )
        found.append((name, "; ".join(part for part in parts if part)))
    return found


def _metrics(facts: Facts) -> Table | None:
    """What the compared metrics mean, and where their margins are from."""
    stated = facts.findings.study.margins
    rows: dict[str, tuple[str, ...]] = {}
    for model in facts.models:
        for metric in facts.compared(model):
            name = f"{metric.suite}/{metric.name}"
            origin = "the study's" if name in stated else "the default"
            margin = "none" if metric.margin is None else f"{metric.margin:g}, {origin}"
            rows[name] = (metric.paper, name, metric.better, metric.meaning, margin)
    columns = ("metric", "suite/name", "better", "meaning", "margin")
    return Table("", columns, list(rows.values())) if rows else None


def _verdicts(facts: Facts, model: str) -> Verdicts:
    metrics = facts.compared(model)
    groups = []
    about: dict[str, dict[str, None]] = {}
    for kind in get_args(Kind):
        rows = []
        for name, arm in facts.arms.items():
            if arm.kind != kind or name == facts.reference:
                continue
            places = [(model, name, m.suite, m.name) for m in metrics]
            found = [
                (facts.comparisons.get(p), facts.families.get(p), facts.exceptions.get(p, ""))
                for p in places
            ]
            rows.append((arm, found))
            for comparison, *_ in found:
                for text in _remarks(comparison):
                    about.setdefault(text, {})[name] = None
        if rows:
            groups.append((_KINDS[kind], rows))
    everyone = len(facts.arms) - 1
    return Verdicts(
        model=model,
        metrics=metrics,
        reference=[_score(facts, model, facts.reference, m.suite, m.name) for m in metrics],
        groups=groups,
        notes=[
            ("all arms" if len(names) == everyone > 1 else ", ".join(names), text)
            for text, names in about.items()
        ],
    )


def _score(
    facts: Facts, model: str, arm: str, suite: str, metric: str, sparsity: str | None = None
) -> str:
    """Mean and 95% t interval over seeds at one sparsity; at the middle one by default."""
    sparsity = facts.middle.get((model, arm)) if sparsity is None else sparsity
    values = facts.samples.get((model, arm, suite, metric), {})
    return mean_interval(list(values.get(sparsity or "", {}).values()))


def _numbers(facts: Facts, model: str) -> Table:
    """All that the comparisons say, for readers of the page; the CSV has it in full."""
    columns = ("arm", "metric", "verdict", "difference [95% interval]", "p", "Holm p", "d_z",
               "smallest detectable", "margin", "Holm p of equivalence", "family", "L0",
               "seeds")  # fmt: skip
    rows = [
        (arm, facts.label(model, metric), marked(found), difference(found), p(found.p),
         p(found.p_holm), number(found.effect_size), number(found.smallest_detectable),
         number(found.margin), p(found.p_equivalence_holm),
         facts.families[model, arm, metric.suite, metric.name], span(found.l0), str(found.n))
        for arm in facts.arms
        for metric in facts.compared(model)
        if (found := facts.comparisons.get((model, arm, metric.suite, metric.name)))
    ]  # fmt: skip
    return Table(model, columns, rows)


def _paper(facts: Facts, model: str) -> Table | None:
    """What papers report beside what is measured, an arm and sparsity a row."""
    arms = [arm for arm in facts.findings.arms if arm.paper]
    metrics = facts.compared(model)
    if not any(m.name.startswith("explained_variance") for m in metrics):
        others = facts.findings.metrics.get(model, [])
        metrics += [m for m in others if m.name.startswith("explained_variance")][:1]
    rows = []
    printed = [p for p in OF_PAPERS if any(s[:1] + s[2:] == (model, *p) for s in facts.values)]
    for arm in arms:
        verdict = (
            "the reference" if arm.name == facts.reference else summary(facts, model, arm.name)
        )
        for place, (sparsity, runs) in enumerate(facts.runs.get((model, arm.name), {}).items()):
            scores = [_score(facts, model, arm.name, m.suite, m.name, sparsity) for m in metrics]
            scores += [_score(facts, model, arm.name, *p, sparsity) for p in printed]
            heads = (arm.name, arm.paper, verdict) if place == 0 else ("", "", "")
            l0s = [run.l0 for run in runs if run.l0 is not None]
            rows.append((*heads, sparsity, mean_interval(l0s), *scores))
    columns = (
        "arm", "the paper prints", "verdict at equal L0", "sparsity", "L0",
        *(facts.label(model, metric) for metric in metrics),
        *(OF_PAPERS[p] for p in printed),
    )  # fmt: skip
    return Table(model, columns, rows) if rows else None


def _existing(facts: Facts, model: str) -> Table | None:
    """What was measured of the SAEs that exist already, each a row."""
    metrics = facts.compared(model)
    rows = []
    for arm in facts.arms:
        for one in facts.existing.get((model, arm), ()):
            seed = one.seed_of(facts.findings.study.seeds)
            runs = facts.runs.get((model, arm), {}).get(one.sparsity, [])
            state = _state(next((run for run in runs if run.seed == seed), None))
            values = (facts.values.get((model, arm, m.suite, m.name), {}) for m in metrics)
            scores = [number(found.get(one.sparsity, {}).get(seed)) for found in values]
            rows.append((arm, one.sae, str(seed), state, *scores))
    columns = ("arm", "SAE", "seed", "L0", *(facts.label(model, metric) for metric in metrics))
    return Table(model, columns, rows) if rows else None


def _saes(facts: Facts, model: str) -> Table:
    """The L0 of every SAE, a seed a column."""
    seeds = sorted({one.seed for one in facts.findings.trained if one.model == model})
    rows = []
    for arm in facts.arms:
        for sparsity, runs in facts.runs.get((model, arm), {}).items():
            of_seed = {run.seed: run for run in runs}
            cells = [_state(of_seed.get(seed)) for seed in seeds]
            rows.append((arm, sparsity or "as it is", *cells))
    return Table(model, ("arm", "sparsity", *(f"seed {seed}" for seed in seeds)), rows)


def _remarks(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    reason = [f"no verdict: {comparison.reason}"] if comparison.reason else []
    return [*reason, *comparison.warnings]


def _state(run: Trained | None) -> str:
    if run is None:
        return "none"
    if run.status != "ok":
        return run.status
    return number(run.l0) + (f" ± {number(run.l0_error)}" if run.l0_error else "")


SCORE_COLUMNS = (
    *("model", "arm", "sparsity", "seed", "suite", "metric", "value", "n", "pseudo_value"),
)
_DETAIL_COLUMNS = (*SCORE_COLUMNS, "item")
VERDICT_COLUMNS = (
    *("model", "arm", "suite", "metric", "family", "verdict", "difference", "low", "high", "p"),
    *("p_holm", "effect_size", "smallest_detectable", "margin", "p_equivalence"),
    *("p_equivalence_holm", "sd", "n", "l0_low", "l0_high", "reason", "warnings"),
)


def _tables(findings: Findings) -> list[tuple[str, str]]:
    """The CSV files."""
    scores = [score.model_dump() for score in findings.scores]
    details = [detail.model_dump() for detail in findings.details]
    return [
        (VERDICTS, as_csv(VERDICT_COLUMNS, map(_verdict_row, findings.contrasts))),
        (SCORES, as_csv(SCORE_COLUMNS, scores)),
        (DETAILS, as_csv(_DETAIL_COLUMNS, details)),
    ]


def _verdict_row(contrast: Contrast) -> dict[str, Any]:
    row: dict[str, Any] = contrast.model_dump(mode="json")
    row |= row.pop("comparison")
    for ends, names in (("interval", ("low", "high")), ("l0", ("l0_low", "l0_high"))):
        row |= dict(zip(names, row.pop(ends) or (None, None), strict=True))
    return {**row, "warnings": "; ".join(row["warnings"])}


def _yaml(value: Any) -> str:
    return yaml_files.dump(value, 100).rstrip()


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("sae_plugins.study", ""), trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, **options,
    )  # fmt: skip
    environment.filters |= {
        "arrow": base_text.arrow, "difference": difference, "number": number, "p": p, "span": span,
        "raw": Markup, "grid": grid, "marked": marked, "limits": limits,
    }  # fmt: skip
    return environment
