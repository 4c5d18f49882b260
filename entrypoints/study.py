"""`sae-plugins study`: run a study, see how far it is, and write its report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems, SaePluginsError, begun, did_you_mean, prefixed
from sae_plugins.base.nearby import meant
from sae_plugins.base.ranks import ranks
from sae_plugins.entrypoints import terminal
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.progress import StudyProgress
from sae_plugins.entrypoints.study_engine import ON, engine_of
from sae_plugins.entrypoints.study_time import pausing
from sae_plugins.entrypoints.train_ranks import several
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag, all_flags, our_flags

if TYPE_CHECKING:
    from sae_plugins.base.kept import Folder
    from sae_plugins.study.findings import Findings
    from sae_plugins.study.plan import StudyPlan
    from sae_plugins.study.prospects import Prospect
    from sae_plugins.study.spec import Study

_ABOUT = """\
Find out whether a method helps: train arms x sparsities x seeds in lockstep (one pass of the
language model for all of them), evaluate every SAE, and compare each arm with the reference arm at
equal L0. A verdict is "better" or "worse" only where the difference stands out from the seeds'
noise, corrected for the number of comparisons. It is "equivalent" where the difference is shown to
be too small to matter, and "underpowered" where there are too few seeds to tell.
"""
_EXAMPLES = """\
  sae-plugins study list                          the packaged studies
  sae-plugins study show quick > mine.yaml        one of them, to change
  sae-plugins study run mine.yaml                 train, evaluate, compare, report; goes on where
                                                  it was, and does only what a change needs
  sae-plugins study run mine.yaml --on slurm --slurm.time 4:00:00 --jobs 8    on a cluster
  sae-plugins study status mine.yaml              what is done, what is to do, and what is at work
  sae-plugins study report mine.yaml              the report of what there is so far
"""
_NOTES = """\
STUDY is the name of a packaged study, or a file that ends in .yaml. The smallest file:

  reference: l1
  models:
    world:                                      # the embedded model, offline
      train: {recipe: baseline-demo}            # flags of `sae-plugins train`, for all arms
      sparsity: {l1_coefficient: [1, 2, 4, 8]}  # each is an SAE; L0s of two arms must overlap
      suites: {core: {n_eval_reconstruction_batches: 8, n_eval_sparsity_variance_batches: 24}}
  arms:
    l1: {kind: baseline}
    reordered: {train: {plugin: [reorder]}}     # a method, mechanisms, options, an architecture

or `extends: quick`, and then only what is to be otherwise. docs/studies.md explains every key.
Under torchrun, the ranks share the language model, the arms and the evaluations of a study whose
`train` has data_shards, such as 8; docs/ranks.md says more.
"""


def _list(_: Line, problems: Problems) -> int:
    problems.stop()
    from sae_plugins import studies
    from sae_plugins.study.files import load

    print(terminal.table({name: load(name).description for name in studies.names()}))
    return 0


def _show(line: Line, problems: Problems) -> int:
    problems.stop()
    from sae_plugins.study.files import load
    from sae_plugins.study.spec import as_yaml

    print(as_yaml(load(line.operands[0])), end="")
    return 0


def _run(line: Line, problems: Problems) -> int:
    with several(line, problems):
        return _run_on_rank(line, problems)


def _run_on_rank(line: Line, problems: Problems) -> int:
    with ranks().together():
        engine = engine_of(line, _FLAGS, problems)
        study, folder, cache = _begun(line, problems)
    from sae_plugins.study.execute import run

    started = time.perf_counter()
    with begun(), pausing(line.given.get("max_time"), folder):
        with closing(StudyProgress()) as progress:
            try:
                run(study, folder, line.given.get("jobs"), progress, cache, engine)
            except OSError as error:
                raise SaePluginsError(
                    f"{folder}: {error}; what is done is kept, and the same command goes on"
                ) from error
        if not ranks().writes:
            return 0
        print(f"done in {(time.perf_counter() - started) / 60:.1f} min")
        findings = _reported(line, problems)
        if not findings.trained:
            raise SaePluginsError(
                "only pilots were trained: none of the wanted L0s is within their reach; change "
                "the values under sparsity as the warnings say"
            )
    return int(bool(findings.failures))


def _begun(line: Line, problems: Problems) -> tuple[Study, Path, Folder | None]:
    """What is to be run, where, and what keeps activations, if all that can be known is right."""
    from sae_plugins.settings.checks import check_interval

    cache: Folder | None = None
    with problems:
        cache = _cache(line.given)
    with problems:
        check_interval(line.given)
    if ranks().size > 1 and "jobs" in line.given:
        problems.add(
            f"--jobs: {ranks().size} ranks share the study already; leave it, or torchrun, out"
        )
    if line.given.get("jobs", 1) < 1:
        problems.add(f"--jobs {line.given['jobs']}: it must be at least 1")
    study, folder, known = _given(line, problems)
    from sae_plugins.runs.places import check_places
    from sae_plugins.study.prospects import refuse_hopeless

    trained = [cell for cell in (*known.pilots, *known.cells) if not cell.source]
    to_train = [cell for cell in trained if cell.summary(folder) is None]
    for cell in to_train:
        with problems, prefixed(f"models.{cell.model}.train"):
            check_places(cell.settings.values)
    problems.stop()
    found = _status_of(study, folder, known, line)
    if to_train and not line.given.get("underpowered"):
        refuse_hopeless(found, len(study.seeds))
    return study, folder, cache


def _cache(given: Mapping[str, Any]) -> Folder | None:
    """Where the language models' activations are to be kept."""
    from sae_plugins.settings.settings import activation_cache

    if "cache_budget" in given and not given.get("activation_cache"):
        raise SaePluginsError("--cache_budget: it needs --activation_cache")
    return activation_cache(lambda name: given.get(name, all_flags()[name].default))


def _status(line: Line, problems: Problems) -> int:
    from sae_plugins.entrypoints import study_tables

    study, folder, known = _given(line, problems)
    _status_of(study, folder, known, line)
    study_tables.print_living(folder)
    return 0


def _status_of(study: Study, folder: Path, known: StudyPlan, line: Line) -> list[Prospect]:
    """Print what is done, what is to do, and what it can find."""
    from sae_plugins.entrypoints import study_tables
    from sae_plugins.study.prospects import known_noise, prospects

    earlier = line.given.get("noise_from")
    noise = known_noise(study, folder, Path(earlier).expanduser() if earlier else None)
    found = prospects(study, noise)
    study_tables.print_plan(study, known, folder)
    study_tables.print_stale(known, folder)
    study_tables.print_prospects(found, len(study.seeds))
    return found


FORMATS = ("pdf", "svg")
"""Of figures, besides PNG."""


def _report(line: Line, problems: Problems) -> int:
    for kind in line.given.get("formats", ()):
        if kind not in FORMATS:
            known = did_you_mean(kind, FORMATS)
            problems.add(f"--formats {kind}: figures can be {', '.join(FORMATS)}; {known}")
    return int(bool(_reported(line, problems).failures))


def _reported(line: Line, problems: Problems) -> Findings:
    """Write the report, and print what it comes to."""
    study, folder, known = _given(line, problems)
    if not folder.is_dir():
        cure = meant(folder) or "run the study first"
        raise SaePluginsError(f"--output_path {folder}: there is no such folder; {cure}")
    from sae_plugins.base.files import write
    from sae_plugins.entrypoints import study_tables
    from sae_plugins.study import report
    from sae_plugins.study.gather import FINDINGS, gather

    there = any(cell.summary(folder) for cell in (*known.cells, *known.pilots))
    if not there and (folder / FINDINGS).exists():
        study_tables.print_stale(known, folder)
        raise SaePluginsError(
            f"{folder} has no SAE of this study, but an earlier report, which stays"
        )
    findings = gather(Path(line.operands[0]).stem, study, folder)
    with begun():
        try:
            write(folder / FINDINGS, findings.model_dump_json(indent=1) + "\n")
            page = report.write(findings, folder, tuple(line.given.get("formats", ())))
        except OSError as error:
            raise SaePluginsError(f"{folder}: the report could not be written: {error}") from error
    study_tables.print_verdicts(findings)
    print(f"the report: {page}")
    for text in findings.failures:
        print(f"failed: {text}", file=sys.stderr)
    return findings


def _given(line: Line, problems: Problems) -> tuple[Study, Path, StudyPlan]:
    """The study, its folder, and the plan as far as it is known."""
    from sae_plugins.study.files import read

    study: Study | None = None
    known: StudyPlan | None = None
    name = "".join(line.operands[:1])
    folder = Path(line.given.get("output_path") or Path("studies") / Path(name).stem).expanduser()
    if folder.exists() and not folder.is_dir():
        problems.add(f"--output_path {folder} is a file; name a folder")
    if name:
        study = read(name, problems)
    if study is not None:
        from sae_plugins.study.planned import plan_of

        with problems, prefixed(f"study {name}"):
            known = plan_of(study, folder)
    problems.stop()
    assert study is not None
    assert known is not None
    return study, folder, known


_FLAGS = {
    flag.name: flag
    for flag in (
        Flag("output_path", "none | str", "the study's folder (default: studies/NAME)"),
        ON,
        Flag(
            "jobs",
            "int",
            "tasks that are done at once, each with the language model in memory; the work is cut "
            "for so many (default: one per GPU, or per core where there is none; elsewhere than "
            "here, one for each model and seed)",
        ),
        *(
            replace(our_flags()[name], group="")
            for name in ("activation_cache", "cache_budget", "rank_timeout")
        ),
        replace(
            our_flags()["max_time"],
            group="",
            help="from the start of the command until it stops to go on later, such as 3h50m, "
            "90min, 2d or 13800 (seconds): what is trained and evaluated is kept, and the exit "
            "code is 75, as after SIGUSR1",
        ),
        Flag(
            "noise_from",
            "none | str",
            "the folder of an earlier study, whose noise says what this one can find (default: "
            "what this study's folder has)",
        ),
        Flag("underpowered", "bool", "run it even if it can find nothing", False),
        Flag("formats", "list[str]", "of figures, besides PNG: pdf, svg", []),
    )
}


def _action(
    name: str,
    summary: str,
    run: Callable[[Line, Problems], int],
    *flags: str,
    operand: str = "STUDY",
    owners: str = "",
) -> Command:
    own = {flag: _FLAGS[flag] for flag in flags}
    return Command(f"study {name}", summary, run, operand, flags=lambda: own, owners=owners)


COMMAND = Command(
    "study",
    "compare methods",
    about=_ABOUT,
    examples=_EXAMPLES,
    notes=_NOTES,
    actions=(
        _action("list", "the packaged studies, and what they ask", _list, operand=""),
        _action("show", "a study as YAML, with those that it extends", _show),
        _action(
            "run",
            "train, evaluate and compare what is missing, and write the report",
            _run,
            *("output_path", "on", "jobs", "activation_cache", "cache_budget"),
            *("max_time", "noise_from", "underpowered", "rank_timeout"),
            owners="engine",
        ),
        _action(
            "status",
            "what is done, what is to do, and what differences it can find",
            _status,
            *("output_path", "noise_from"),
        ),
        _action(
            "report",
            "write the report of what there is so far",
            _report,
            *("output_path", "formats"),
        ),
    ),
)
