"""From a study's folder to its `Findings`: only the statistics are computed again."""

from __future__ import annotations

import itertools
import math
import os
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from sae_plugins.base.files import versions
from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.secrets import redacted
from sae_plugins.base.shown_paths import without_places
from sae_plugins.base.yaml_files import parse
from sae_plugins.eval_suites.evaluation.manifest import Manifest, Row
from sae_plugins.eval_suites.evaluation.metrics import HELDOUT, TRAINING
from sae_plugins.eval_suites.evaluation.results import Result, read_result
from sae_plugins.framework.resolve import UNCALIBRATED
from sae_plugins.runs.folder import RECIPE
from sae_plugins.runs.summary import calibration_of
from sae_plugins.settings.values import as_text
from sae_plugins.study import (
    ENOUGH_SEEDS,
    described,
    equal_l0,
    machines,
    naming,
    plugin_files,
    seeds,
)
from sae_plugins.study.cells import L0, Cell, grouped
from sae_plugins.study.evaluated import EVALUATIONS, evaluations, hashes_in, suite_of
from sae_plugins.study.failures import failed_since, failure
from sae_plugins.study.findings import (
    ArmInfo,
    Contrast,
    Detail,
    Findings,
    ReportedMetric,
    Score,
    Trained,
)
from sae_plugins.study.metrics import OF_PAPERS, shown
from sae_plugins.study.planned import plan_of, undefined
from sae_plugins.study.points import Points
from sae_plugins.study.spec import Family, Study
from sae_plugins.study.statistics import NEAR_L0, Question, compare
from sae_plugins.study.words import differing

FINDINGS = "findings.json"


def gather(name: str, study: Study, folder: Path) -> Findings:
    """What is known of a study by its folder, whether or not all of it has been run.

    Raises:
        SaePluginsError: something in the study is wrong, or the folder is damaged.
    """
    known = plan_of(study, folder)
    trained, scores = _of_runs(known.cells, folder)
    pilots = [(cell, failure(cell, folder)) for cell in known.pilots]
    failures = [f"{_place(cell)}, {cell.purpose}: {reason}" for cell, reason in pilots if reason]
    failures += [f"{_place(one)}: {one.reason}" for one in trained if one.reason]
    hashes = seeds.hashes(trained, folder)
    scores += seeds.scores(trained, folder, hashes)
    of_cell = {
        cell: one for cell, one in zip(known.cells, trained, strict=True) if one.status == "ok"
    }
    there, found = [*of_cell], _evaluated(study, of_cell, folder)
    scores += found.scores
    results = found.results
    metrics = {
        model: shown(study, {n: r.metrics for n, r in results.get(model, {}).items()})
        for model in study.models
    }
    measured = {(model, suite) for model, by_suite in results.items() for suite in by_suite}
    kept = {(m, x.suite, x.name) for m, of_model in metrics.items() for x in of_model}
    kept |= {(m, *of_papers) for m in study.models for of_papers in OF_PAPERS}
    models = described.models(known.cells, results, found.widths)
    used = _versions(there, found.ran, folder)
    where = {
        "trained": machines.facts(machines.of_saes(there, folder)),
        "evaluated": machines.facts(result.machine for result in found.ran),
    }
    return Findings(
        name=name,
        study=plugin_files.shared(study)[0],
        arms=_arms(study),
        models=models,
        metrics=metrics,
        trained=trained,
        scores=[
            s
            for s in scores
            if s.suite in (TRAINING, UNCALIBRATED) or (s.model, s.suite, s.metric) in kept
        ],
        details=found.details,
        contrasts=_contrasts(study, metrics, trained, scores),
        tuned=known.tuned,
        searched=known.searched,
        learning_rates=_learning_rates(known.cells),
        warnings=[
            *known.warnings,
            *naming.warnings(study, folder),
            *_kept(there, folder),
            *seeds.twins(trained, hashes),
            *_missed(study, known.pilots, trained),
            *equal_l0.warnings(trained, [m for m, one in models.items() if one.is_synthetic]),
            *_warnings(study, trained, found.count),
            *_not_there(
                study,
                metrics,
                measured | {(one.model, suite) for one in trained for suite in one.unscored},
            ),
            *_mixed(used),
            *(text for what, of in where.items() for text in machines.warnings(of, what)),
            *found.said,
        ],
        failures=failures + found.failures,
        provenance=_provenance(results, used)
        | {f"{what} on": {n: " and ".join(v) for n, v in of.items()} for what, of in where.items()},
    )


@dataclass
class _Evaluated:
    """What the evaluations of a study's SAEs have given."""

    scores: list[Score] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ran: list[Result] = field(default_factory=list)
    results: dict[str, dict[str, Result]] = field(default_factory=dict)
    """One, by model and suite."""
    widths: dict[str, set[int]] = field(default_factory=dict)
    """The d_sae that there are, by model."""
    said: dict[str, None] = field(default_factory=dict)
    """Warnings on SAEs that were not trained here, each once."""
    count: int = 0

    def add(self, cell: Cell, suite: str, result: Result) -> None:
        """A result."""
        where = _where(cell)
        self.ran.append(result)
        self.widths.setdefault(cell.model, set()).add(result.sae.d_sae)
        self.results.setdefault(cell.model, {}).setdefault(suite, result)
        if cell.source:
            self.said |= dict.fromkeys(f"{cell.arm}, {cell.source}: {x}" for x in result.warnings)
        self.scores += [
            Score(**where, suite=suite, metric=metric, value=value.value, n=value.n)
            for metric, value in result.metrics.items()
        ]
        self.details += [
            Detail(**where, suite=suite, metric=metric, value=value, item=item)
            for item, of_item in result.details.items()
            for metric, value in of_item.items()
        ]


def _evaluated(study: Study, of_cell: Mapping[Cell, Trained], folder: Path) -> _Evaluated:
    """Read the evaluations; suites that have no result for an SAE are noted with it."""
    found = _Evaluated()
    for cell, row, result in _results(study, [*of_cell], folder):
        found.count += 1
        if row.status == "not applicable":
            continue
        if result is None or result.status != "ok":
            reason = row.reason or f"{row.file} cannot be read"
            found.failures.append(f"{_place(cell)}, {row.suite}: {reason}")
            of_cell[cell].unscored.append(row.suite)
        else:
            found.add(cell, row.suite, result)
    return found


def _where(cell: Cell | Trained) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in ("model", "arm", "sparsity", "seed")}


def _place(of: Cell | Trained) -> str:
    parts = (of.model, of.arm, of.sparsity, f"seed {of.seed}")
    return ", ".join(part for part in parts if part)


def _warnings(study: Study, trained: Sequence[Trained], evaluated: int) -> Iterator[str]:
    missing = sum(one.status != "ok" for one in trained)
    wanted = sum(len(study.models[one.model].suites) for one in trained)
    if missing or evaluated < wanted:
        yield (
            f"not complete: {missing} of {len(trained)} SAEs and {wanted - evaluated} of {wanted} "
            "evaluations are missing; verdicts are of what there is"
        )
    for name, arm in study.arms.items():
        if not arm.exists and (tried := len(arm.points(name))) > 1:
            yield (
                f"{tried} settings of {name} were tried: the best of them looks better here than "
                "it is, so confirm it by a study of its own, with other seeds"
            )
    if len(study.seeds) < ENOUGH_SEEDS:
        yield (
            f"{len(study.seeds)} seeds: with fewer than {ENOUGH_SEEDS}, only large effects "
            "can be told from noise, and the intervals rest on very few differences"
        )


def _kept(cells: Sequence[Cell], folder: Path) -> Iterator[str]:
    """SAEs that exist elsewhere, or did, and could not be loaded again."""
    for cell in cells:
        if cell.existing and (reason := failed_since(cell, folder)):
            yield f"{_place(cell)}: as it was when it was scored; it cannot be loaded now: {reason}"


def _missed(study: Study, pilots: Sequence[Cell], trained: Sequence[Trained]) -> Iterator[str]:
    """Wanted L0s to which no SAE of an arm came near: its pilots were too far apart there."""
    members = grouped(trained, lambda one: (one.model, one.arm))
    for model, arm in grouped(pilots, lambda cell: (cell.model, cell.arm)):
        found, targets = members.get((model, arm), []), study.models[model].target_l0 or []
        if not targets or any(one.calibration for one in found):
            continue  # these say themselves what they miss
        if len({one.sparsity for one in found}) < len(targets):
            continue  # one is out of the pilots' reach, which is said already
        of_seeds = grouped((one for one in found if one.l0), lambda one: one.sparsity).values()
        l0s = [median(one.l0 or 0 for one in members_of) for members_of in of_seeds]
        for target in targets if l0s else ():
            nearest = min(l0s, key=lambda l0: abs(math.log(l0 / target)))
            if abs(math.log(nearest / target)) > NEAR_L0:
                yield (
                    f"{model}, {arm}: an L0 of {target:g} is wanted, and the nearest SAEs have "
                    f"{nearest:.3g}; give more values under sparsity, close to that"
                )


def _not_there(
    study: Study, metrics: Mapping[str, list[ReportedMetric]], measured: Collection[tuple[str, str]]
) -> Iterator[str]:
    """Metrics to compare that no result has, of suites that were run."""
    for model, suite in sorted(measured):
        known = [f"{metric.suite}/{metric.name}" for metric in metrics[model]]
        known += [f"{suite}/{name}" for name in undefined(study, model, suite)]
        for name in study.compare:
            if name.startswith(f"{suite}/") and name not in known:
                yield f"{model}: no result has {name}, which is to be compared"


def _mixed(versions: Mapping[str, list[str]]) -> Iterator[str]:
    if mixed := differing(versions):
        yield f"SAEs or results are of different versions: {mixed}"


def _arms(study: Study) -> list[ArmInfo]:
    model = next(iter(study.models))
    infos = []
    for name, arm in study.all_arms().items():
        train, _ = arm.on_model(model, study.models[model])
        if isinstance(train.get("plugin"), list):
            train = {**train, "plugin": [*map(plugin_files.without_folder, train["plugin"])]}
        texts = {flag: as_text(value) for flag, value in redacted(train).items()}
        flags = " ".join(f"--{f} {text}" if text else f"no --{f}" for f, text in texts.items())
        if arm.exists:
            names = (one.sae for on in study.models for one in arm.saes_on(on))
            flags = f"not trained here, but {', '.join(dict.fromkeys(names))}"
        infos.append(
            ArmInfo(
                name=name, kind=arm.kind, description=arm.description, paper=arm.paper, flags=flags
            )
        )
    return infos


# -- what the folder has -------------------------------------------------------------------------


def _of_runs(cells: Sequence[Cell], folder: Path) -> tuple[list[Trained], list[Score]]:
    """Each SAE, and what its run says of it."""
    trained, scores = [], []
    for cell in cells:
        summary, reason = cell.summary(folder), failure(cell, folder)
        trained.append(
            Trained(
                **_where(cell),
                folder=cell.folder.as_posix(),
                status="ok" if summary is not None else "failed" if reason else "missing",
                reason=reason,
                l0=(summary or {}).get(L0),
                tokens=(summary or {}).get(f"{HELDOUT}/tokens"),
                calibration=calibration_of(summary or {}),
            )
        )
        for line, value in (summary or {}).items():
            suite, _, metric = line.partition("/")
            if suite in (HELDOUT, UNCALIBRATED, TRAINING) and isinstance(value, (int, float)):
                scores.append(Score(**_where(cell), suite=suite, metric=metric, value=value))
    return trained, scores


def _learning_rates(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """By model and arm; those that are left as they were drawn have none."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        if not (cell.untrained or cell.existing):
            found.setdefault(cell.model, {})[cell.arm] = float(cell.settings.get("lr"))
    return found


def _results(
    study: Study, cells: Sequence[Cell], folder: Path
) -> Iterator[tuple[Cell, Row, Result | None]]:
    """What was evaluated of SAEs that are there, with its suites' settings, and what came of it."""
    read: dict[tuple[str, int], tuple[Path, dict[str, str], list[Row]]] = {}
    settings = {
        (model, suite): fingerprint(suite_of(study, model, suite)[1].model_dump(mode="json"))[:8]
        for model, spec in study.models.items()
        for suite in spec.suites
    }
    for cell in cells:
        place = (cell.model, cell.seed)
        if place not in read:
            there = evaluations(folder, *place)
            read[place] = (there, hashes_in(there), Manifest.read(there).rows)
        there, hashes, rows = read[place]
        model = study.models[cell.model]
        for row in rows:
            wanted = settings.get((cell.model, row.suite)), model.evaluation_seed
            if (row.settings, row.seed) != wanted or not _is_of(row, cell, hashes):
                continue
            if row.status not in ("planned", "running"):
                yield cell, row, read_result(there / row.file) if row.file else None


def _is_of(row: Row, cell: Cell, hashes: Mapping[str, str]) -> bool:
    name = cell.folder.name
    if row.sae_hash is None:  # it could not be loaded
        place = cell.source or name
        told = {place, without_places(place), Path(place).name}  # from here, or from elsewhere
        same = row.source in told if cell.source else Path(row.source).name == name
        return same and name not in hashes
    return hashes.get(name) == row.sae_hash


# -- what it says --------------------------------------------------------------------------------


def _contrasts(
    study: Study,
    metrics: Mapping[str, list[ReportedMetric]],
    trained: Sequence[Trained],
    scores: Sequence[Score],
) -> list[Contrast]:
    """Every arm against the reference, on every compared metric: one Holm family, or two."""
    points = Points(trained, scores)
    everyone = study.all_arms()
    families: dict[Family, dict[tuple[str, str, str, str], Question]] = {}
    for model, found in metrics.items():
        arms = [
            name
            for name, arm in everyone.items()
            # of one that exists, nobody may have an SAE of this model
            if name != study.reference and (arm.saes_on(model) or not arm.exists)
        ]
        for metric, arm in itertools.product([m for m in found if m.compared], arms):
            suite, name = metric.suite, metric.name
            members = families.setdefault(study.family(arm, f"{suite}/{name}"), {})
            members[model, suite, name, arm] = points.question(model, metric, arm, study.reference)
    return [
        Contrast(
            model=model, arm=arm, suite=suite, metric=metric, comparison=comparison, family=family
        )
        for family, questions in families.items()
        for (model, suite, metric, arm), comparison in compare(questions).items()
    ]


def _versions(
    cells: Sequence[Cell], results: Sequence[Result], folder: Path
) -> dict[str, list[str]]:
    """The versions that SAEs were trained with and results computed with, by distribution."""
    found: dict[str, set[str]] = {}
    trained = [folder / cell.folder / RECIPE for cell in cells if not cell.source]
    recipes = (parse(file.read_text("utf-8")) for file in trained)
    for names in (*(recipe["versions"] for recipe in recipes), *(r.versions for r in results)):
        for name, version in names.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(found[name]) for name in sorted(found)}


def _provenance(
    results: Mapping[str, Mapping[str, Result]], used: Mapping[str, list[str]]
) -> dict[str, Any]:
    datasets: dict[str, str] = {}
    models: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for model, found in results.items():
        for suite, result in found.items():
            datasets |= result.datasets
            settings[f"{model}/{suite}"] = result.settings
            if result.model is not None:
                models[result.model.name] = f"{result.model.hash} ({result.model.dtype})"
    return {
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: " and ".join(found) for name, found in used.items()},
        "written with": versions(("sae-plugins", "scipy", "statsmodels")),
        "written on": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "language models": models,
        "datasets": datasets,
        "suite settings": settings,
        "evaluations": EVALUATIONS,
    }
