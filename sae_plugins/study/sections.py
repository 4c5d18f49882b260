"""The sections of a study's report that have pictures, drawn for the page and saved as files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from sae_plugins.base.names import own_file_name
from sae_plugins.base.plots import save
from sae_plugins.base.text import arrow, natural
from sae_plugins.runs.folder import FIGURES
from sae_plugins.settings.values import as_text
from sae_plugins.study import figures, traces
from sae_plugins.study.axes import cut
from sae_plugins.study.facts import Facts, l0_of
from sae_plugins.study.figures import Heatmap, Line, Panel
from sae_plugins.study.findings import ReportedMetric
from sae_plugins.study.forest import Forest, draw, forest, plotly
from sae_plugins.study.statistics import frontier, within_seed_interval
from sae_plugins.study.words import Table, number, span

_MOST_FEATURES = 8192
"""Features of an arm, over its seeds, whose redundancy is computed: enough for a histogram."""
_MOST_DOTS = 1500
_BINS = 40
_CURVES = (
    ("losses/overall_loss", "loss", "of the arm's own objective: comparable between arms only "
     "where objectives are alike"),
    ("metrics/l0", "L0", "active features per token"),
    ("metrics/explained_variance", "explained variance", "of the training batch"),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure of the page, below its title and a note."""

    title: str
    note: str
    data: Markup
    """As plotly.js reads it."""
    width: int
    """In pixels, below which the figure scrolls."""


@dataclass(frozen=True)
class Section:
    """What is shown of one model, under one heading: pictures, tables, and what is missing."""

    title: str
    pictures: Sequence[Picture] = ()
    choices: Sequence[Picture] = ()
    """The page shows one of these at a time."""
    image: str = ""
    """The PNG's path, relative to the report; empty if there is none."""
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def forests(facts: Facts, model: str) -> Section:
    """Each arm's difference from the reference, a metric a picture."""
    found: list[Forest] = []
    for metric in facts.compared(model):
        places = {arm: (model, arm, metric.suite, metric.name) for arm in facts.arms}
        rows = [(a, facts.comparisons[p]) for a, p in places.items() if p in facts.comparisons]
        shown = forest(f"{facts.label(model, metric)} {arrow(metric.better)}".strip(), rows)
        if shown.rows:
            found.append(shown)
    if not found:
        return Section(model)
    pictures = [
        Picture(shown.title, "", Markup(figures.page_json(*plotly(shown))), 0) for shown in found
    ]
    image = _save(facts, f"verdicts_{model}", draw(found))
    return Section(model, pictures, image=image)


def frontiers(facts: Facts, model: str) -> Section:
    """Each metric over L0."""
    compared, others, panels = [], [], []
    for metric in facts.findings.metrics.get(model, []):
        panel = frontier_panel(facts, model, metric)
        if not panel.lines or metric.paper == "L0":
            continue
        note = ". ".join(filter(None, [metric.meaning, panel.beyond]))
        picture = _picture(facts, panel.title, panel, note)
        if metric.compared:
            compared.append(picture)
            panels.append(panel)
        else:
            others.append(picture)
    image = _image(facts, f"frontiers_{model}", panels)
    return Section(model, compared, others, image)


def frontier_panel(facts: Facts, model: str, metric: ReportedMetric) -> Panel:
    """A metric over L0, a line for each arm that has it."""
    found = (_frontier(facts, model, arm, metric) for arm in facts.looks)
    title = f"{facts.label(model, metric)} {arrow(metric.better)}".strip()
    panel = Panel(title, "L0 (log scale)", "", [line for line in found if line], log_x=True)
    return _without_far(panel, facts.reference)


def _without_far(panel: Panel, reference: str) -> Panel:
    """The panel with an axis on which arms can be told apart; it names those that are beyond."""
    values = {
        line.arm: [y for y in (*line.y, *(y for _, y in line.dots)) if math.isfinite(y)]
        for line in panel.lines
    }
    found = cut({arm: ys for arm, ys in values.items() if ys}, reference)
    if found is None:
        return panel
    where = (f"{arm} at {number(a)} to {number(b)}" for arm, (a, b) in found.off.items())
    beyond = f"off the axis: {', '.join(where)}"
    return replace(panel, y_axis=(found.low, found.high), beyond=beyond)


def _frontier(facts: Facts, model: str, arm: str, metric: ReportedMetric) -> Line | None:
    points, shown = (
        facts.points.of(model, metric.suite, metric.name, [*facts.arms], shown=shown)[arm]
        for shown in (False, True)
    )
    dots = [(point.l0, point.value) for point in shown if point.usable]
    if not dots:
        return None
    found = frontier(points, 24)
    if found is None:
        return Line(arm, dots=dots)
    if not any(math.isfinite(y) for y in found.low):
        return Line(arm, found.l0, found.mean, dots=dots)
    least, most = metric.bounds  # a t interval does not know that a share ends at 1
    low = [max(y, -math.inf if least is None else least) for y in found.low]
    high = [min(y, math.inf if most is None else most) for y in found.high]
    return Line(arm, found.l0, found.mean, low, high, dots)


_Cells = dict[tuple[str, str], dict[int, float]]
"""Scores by arm and item, then by seed."""


def items(facts: Facts) -> list[Section]:
    """By model and suite: arms by letters, pairs or datasets, at their middle sparsity."""
    found: dict[tuple[str, str], dict[str, _Cells]] = {}
    for d in facts.findings.details:
        if d.value is not None and facts.middle.get((d.model, d.arm)) == d.sparsity:
            by_metric = found.setdefault((d.model, d.suite), {})
            by_metric.setdefault(d.metric, {}).setdefault((d.arm, d.item), {})[d.seed] = d.value
    return [_heatmaps(facts, *place, by_metric) for place, by_metric in found.items()]


def _heatmaps(
    facts: Facts,
    model: str,
    suite: str,
    by_metric: Mapping[str, _Cells],
) -> Section:
    compared = {metric.name for metric in facts.compared(model) if metric.suite == suite}
    pictures, tables, images = [], [], []
    # those that have a verdict first
    for metric in sorted(by_metric, key=lambda name: name not in compared):
        cells = by_metric[metric]
        items = sorted({item for _, item in cells}, key=natural)
        arms = [arm for arm in facts.looks if any((arm, item) in cells for item in items)]
        values = [
            [fmean(cells[arm, item].values()) if (arm, item) in cells else None for item in items]
            for arm in arms
        ]
        at = [f"{arm} (L0 {number(l0_of(facts.at_middle(model, arm)))})" for arm in arms]
        heatmap = Heatmap(f"{suite}: {metric}", at, items, values)
        images.append(heatmap)
        pictures.append(_picture(facts, metric, heatmap))
        rows = [
            (name, _within_a_seed(cells, arm), *map(number, row))
            for arm, name, row in zip(arms, at, values, strict=True)
        ]
        tables.append(Table(metric, ("arm", "all, of the first seed", *items), rows))
    image = _save(facts, f"items_{model}_{suite}", figures.draw_heatmap(images[0]))
    title = suite if len(facts.models) == 1 else f"{model}: {suite}"
    return Section(title, (), pictures, image, tables)


def _within_a_seed(cells: _Cells, arm: str) -> str:
    """The mean over items of an arm's first seed, with its bootstrap interval over items."""
    seed = min(seed for (owner, _), seeds in cells.items() if owner == arm for seed in seeds)
    values = [v[seed] for (owner, _), v in cells.items() if owner == arm and seed in v]
    interval = within_seed_interval(values, seed)
    return number(fmean(values)) + (f" ({span(interval)})" if interval else "")


def curves(facts: Facts, model: str) -> Section:
    """What the runs logged, over the tokens that they saw."""
    panels, pictures, absent = [], [], dict[str, None]()
    for column, title, note in _CURVES:
        lines = []
        for arm in facts.looks:
            runs = [rows for run in facts.at_middle(model, arm) if (rows := facts.rows_of(run))]
            tokens, values = traces.curve(runs, column)
            if values:
                lines.append(Line(arm, tokens, values))
            else:
                absent[arm] = None
        if lines:
            values = [y for line in lines for y in line.y]
            log = min(values) > 0 and max(values) > 20 * min(values)
            panel = Panel(title, "tokens", "log scale" if log else "", lines, log_y=log)
            panels.append(panel)
            pictures.append(_picture(facts, title, panel, note))
    return Section(
        model, pictures, image=_image(facts, f"curves_{model}", panels),
        notes=_absent("training curve", absent),
    )  # fmt: skip


def learning_rates(facts: Facts, model: str) -> Section:
    """What pilots explain at each learning rate that arms were tried with."""
    found = facts.tuned.get(model, {})
    lines = []
    for one in (found[arm] for arm in facts.looks if arm in found):
        scored = [(tried.lr, tried.score) for tried in one.tried if tried.score is not None]
        dots = [(tried.lr, s) for tried in one.tried for s in tried.scores if s is not None]
        rates, means = zip(*scored, strict=True) if scored else ((), ())
        lines.append(Line(one.arm, rates, means, dots=dots))
    if not lines:
        return Section(model)
    columns = sorted({tried.lr for one in found.values() for tried in one.tried})
    rows = []
    for one in found.values():
        scores = {tried.lr: tried.score for tried in one.tried}
        edge = f", the {one.edge} tried" if one.edge else ""
        best = "none" if one.best is None else f"{one.best:g}{edge}"
        shown = (number(scores[lr]) if lr in scores else "" for lr in columns)
        rows.append((one.arm, number(one.l0), best, *shown))
    table = Table(model, ("arm", "L0", "best", *(f"{lr:g}" for lr in columns)), rows)
    title = "explained variance of pilots ↑"
    panel = Panel(title, "learning rate (log scale)", "", lines, log_x=True)
    picture = _picture(facts, title, panel)
    return Section(
        model, [picture], image=_image(facts, f"learning_rates_{model}", [panel]), tables=[table]
    )


def searches(facts: Facts, model: str) -> list[Table]:
    """The settings that searches have tried, a table for each arm, the best first."""
    tables = []
    for one in (one for one in facts.findings.searched if one.model == model):
        ranked = sorted(one.trials, key=lambda trial: -(trial.score or -math.inf))
        flags = list(one.trials[0].flags)
        rows = [
            (
                *(as_text(trial.flags[flag]) for flag in flags),
                "failed" if trial.score is None else number(trial.score),
            )
            for trial in ranked
        ]
        title = f"{model}, {one.arm}, at an L0 of {number(one.l0)}"
        tables.append(Table(title, (*flags, "explained variance of pilots"), rows))
    return tables


def orders(facts: Facts, model: str) -> Section:
    """Firing frequency by position, of one SAE of each arm that moves features about."""
    panels, pictures, absent = [], [], []
    moving = [
        arm
        for arm in facts.looks
        if any(traces.permuted_features(facts.rows_of(run)) for run in facts.at_middle(model, arm))
    ]
    for arm in [facts.reference, *moving] if moving else ():
        run = next(iter(facts.at_middle(model, arm)), None)
        frequencies = traces.log_frequencies(facts.folder / run.folder) if run else None
        if run is None or frequencies is None:
            absent.append(arm)
            continue
        panel = Panel(
            f"{arm}, seed {run.seed}", "feature position", "log10 firing frequency",
            [_order(arm, frequencies)],
        )  # fmt: skip
        panels.append(panel)
        pictures.append(_picture(facts, panel.title, panel))
    return Section(
        model, pictures, image=_image(facts, f"order_{model}", panels, all_arms=True),
        notes=_absent("feature order", absent),
    )  # fmt: skip


def redundancy(facts: Facts, model: str) -> Section:
    """How close each feature's decoder row is to the nearest other one."""
    lines, absent = [], []
    edges = np.linspace(0, 1, _BINS + 1)
    for arm in facts.looks:
        runs = facts.at_middle(model, arm)
        found = [
            cosines
            for run in runs
            if (
                cosines := traces.nearest_cosines(
                    facts.folder / run.folder, _MOST_FEATURES // len(runs)
                )
            )
            is not None
        ]
        if not found:
            absent.append(arm)
            continue
        counts, _ = np.histogram(np.concatenate(found).clip(0, 1), edges)
        lines.append(Line(arm, list((edges[:-1] + edges[1:]) / 2), list(counts / counts.sum())))
    panel = Panel(
        "Redundancy", "largest |cosine| with another decoder row", "share of features", lines,
        steps=True,
    )  # fmt: skip
    return Section(
        model,
        [_picture(facts, "", panel)] if lines else [],
        image=_image(facts, f"redundancy_{model}", [panel] if lines else []),
        notes=_absent("decoder", absent),
    )


def _picture(facts: Facts, title: str, shown: Panel | Heatmap, note: str = "") -> Picture:
    data = Markup(figures.plotly_json(shown, facts.looks))
    return Picture(title, note, data, figures.width(shown))


def _image(facts: Facts, name: str, panels: Sequence[Panel], *, all_arms: bool = False) -> str:
    """Save panels as a PNG, with the arms that are drawn at first; its path."""
    if not all_arms:
        panels = [replace(p, lines=[x for x in p.lines if x.arm in facts.shown]) for p in panels]
    return _save(facts, name, figures.draw_panels(panels, facts.looks)) if panels else ""


def _save(facts: Facts, name: str, figure: Figure) -> str:
    stem = f"{FIGURES}/{own_file_name(name)}"
    for kind in ("png", *facts.formats):
        save(figure, facts.folder / f"{stem}.{kind}")
    return f"{stem}.png"


def _absent(what: str, arms: Iterable[str]) -> list[str]:
    names = ", ".join(arms)
    return [f"No {what} to show of {names}: no run at its middle sparsity has it."] if names else []


def _order(arm: str, frequencies: np.ndarray[Any, Any]) -> Line:
    """Dots of features, silent ones at the foot, and the line of medians over neighbours."""
    alive = frequencies[frequencies > -9]
    foot = float(alive.min()) - 0.5 if alive.size else -5.0
    heights = np.maximum(frequencies, foot)
    groups = np.array_split(np.arange(len(heights)), max(1, min(40, len(heights) // 8)))
    every = math.ceil(len(heights) / _MOST_DOTS)
    return Line(
        arm,
        [float(group.mean()) for group in groups],
        [float(np.median(heights[group])) for group in groups],
        dots=[(float(place), float(heights[place])) for place in range(0, len(heights), every)],
    )
