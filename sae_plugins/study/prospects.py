"""What a study can find, from its seeds and comparisons, before anything is spent on it.

The smallest difference that it detects is known in standard deviations of the seeds' paired
differences. Earlier results, in the study's own folder or in that of a named study, say how large
these are; then it is known in the metric's own unit, too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.nearby import meant
from sae_plugins.study.evaluated import suite_of
from sae_plugins.study.findings import ReportedMetric
from sae_plugins.study.gather import FINDINGS
from sae_plugins.study.metrics import least_seeds, shown
from sae_plugins.study.planned import undefined
from sae_plugins.study.power import ALPHA, HOPELESS, detectable_effect, seeds_needed
from sae_plugins.study.spec import Family, Study
from sae_plugins.study.stability import LEAST_SEEDS

Noise = Mapping[tuple[str, str, str], float]
"""The standard deviation of paired differences, by model, suite and metric."""


@dataclass(frozen=True)
class Prospect:
    """What a study can find on one metric of one model."""

    model: str
    metric: ReportedMetric
    family: Family
    comparisons: int
    """In the family."""
    effect: float
    """The smallest difference that is found with 80% power, in standard deviations."""
    noise: float | None
    """The standard deviation of the seeds' paired differences, where earlier results say it."""

    @property
    def detectable(self) -> float | None:
        """The smallest difference that is found with 80% power, in the metric's unit."""
        return None if self.noise is None else self.effect * self.noise

    @property
    def hopeless(self) -> bool:
        """Whether no difference that there can be is found."""
        low, high = self.metric.bounds
        if self.detectable is None or high is None:
            return self.effect > HOPELESS
        return self.detectable > high - (low or 0.0)

    @property
    def underpowered(self) -> bool:
        """Whether a difference that matters may be missed."""
        margin, detects = self.metric.margin, self.detectable
        return margin is not None and detects is not None and detects > margin

    @property
    def seeds(self) -> int | None:
        """How many find a difference that matters; None if it is not known, or too many."""
        if self.noise is None or self.metric.margin is None:
            return None
        return seeds_needed(self.metric.margin / self.noise, self.comparisons)


def prospects(study: Study, noise: Noise) -> list[Prospect]:
    """What a study can find, for each compared metric of each model and family of comparisons."""
    most = len(study.seeds)
    common = {model: study.common_seeds(model) for model in study.models}
    compared = [
        (model, metric, study.family(arm, f"{metric.suite}/{metric.name}"))
        for model in study.models
        for metric in _metrics(study, model)
        for arm, seeds in common[model].items()
        if seeds > 1 or seeds == most  # one SAE of an arm that exists has no verdict anyway
    ]
    sizes = Counter(family for _, _, family in compared)
    places = {
        (model, metric.suite, metric.name, family): metric for model, metric, family in compared
    }
    return [
        Prospect(
            model=model,
            metric=metric,
            family=family,
            comparisons=sizes[family],
            effect=detectable_effect(seeds, ALPHA / sizes[family])
            if (seeds := max(common[model].values())) >= least_seeds(suite)
            else math.inf,
            noise=noise.get((model, suite, name)),
        )
        for (model, suite, name, family), metric in places.items()
    ]


def _metrics(study: Study, model: str) -> list[ReportedMetric]:
    """What arms will be compared on, as far as the suites' settings say it."""
    names = {}
    for suite in study.models[model].suites:
        loaded, settings = suite_of(study, model, suite)
        without = undefined(study, model, suite)
        names[suite] = [name for name in loaded.metric_names(settings) if name not in without]
    return [metric for metric in shown(study, names) if metric.compared]


def refuse_hopeless(found: Sequence[Prospect], seeds: int) -> None:
    """Refuse a study that can find nothing.

    Raises:
        SaePluginsError: says why, and what would help.
    """
    if not found or not all(one.hopeless for one in found):
        return
    tests = (
        "one comparison"
        if (most := max(p.comparisons for p in found)) == 1
        else f"{most} comparisons"
    )
    if seeds < 2:
        why = "one seed gives no verdict"
    elif math.isinf(least := min(one.effect for one in found)):
        why = f"{seeds} seeds give no verdict on stability, which takes {LEAST_SEEDS}"
    else:
        why = (
            f"with {seeds} seeds and {tests} it takes a difference of {least:.0f} standard "
            "deviations of noise"
        )
    raise SaePluginsError(
        f"this study can find nothing: {why}; give more seeds, compare fewer arms or metrics, name "
        "primary comparisons, or run it all the same with --underpowered"
    )


# -- what earlier results say --------------------------------------------------------------------


def known_noise(study: Study, folder: Path, earlier: Path | None) -> Noise:
    """The noise of each metric, by the results in a study's folder and by an earlier study's.

    It is the median over arms. Of the earlier study, a model of the same name counts, or its only
    one; where both folders say it, the study's own does.

    Raises:
        SaePluginsError: the earlier study has no results that can be read.
    """
    own = _noise(folder / FINDINGS) if (folder / FINDINGS).is_file() else {}
    if earlier is None:
        return own
    if not (earlier / FINDINGS).is_file():
        cure = None if earlier.exists() else meant(earlier)
        cure = cure or "name a study's folder with a report"
        raise SaePluginsError(f"--noise_from {earlier}: there is no {FINDINGS}; {cure}")
    theirs = _noise(earlier / FINDINGS)
    models = sorted({model for model, _, _ in theirs})
    if not study.models.keys() & {*models}:
        if len(models) != 1:
            found = f"models {', '.join(models)}" if models else "no comparisons"
            raise SaePluginsError(
                f"--noise_from {earlier}: it has {found}, and this study has "
                f"{', '.join(study.models)}; call those alike that are to be taken for each other"
            )
        theirs = {(m, s, name): sd for (_, s, name), sd in theirs.items() for m in study.models}
    return theirs | own


def _noise(file: Path) -> dict[tuple[str, str, str], float]:
    """By model, suite and metric, from the findings of a study, whatever version wrote them."""
    found: dict[tuple[str, str, str], list[float]] = {}
    try:
        contents: dict[str, Any] = json.loads(file.read_text("utf-8"))
        for contrast in contents["contrasts"]:
            if sd := contrast["comparison"]["sd"]:
                place = (contrast["model"], contrast["suite"], contrast["metric"])
                found.setdefault(place, []).append(float(sd))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SaePluginsError(f"{file} cannot be read as a study's findings: {error!r}") from error
    return {place: median(values) for place, values in found.items()}
