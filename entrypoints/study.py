"""`sae-plugins study`: run a study, see how far it is, and write its report."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems, SaePluginsError, begun, prefixed
from sae_plugins.entrypoints import terminal
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.progress import StudyProgress
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag, all_flags, our_flags

if TYPE_CHECKING:
    from sae_plugins.base.kept import Folder
    from sae_plugins.study.cells import StudyPlan
    from sae_plugins.study.findings import Findings
    from sae_plugins.study.spec import Study

_ABOUT = """\
Find out whether a method helps: train arms x sparsities x seeds in lockstep (one pass of the
language model for all of them), evaluate every SAE, and compare each arm with the reference arm at
equal L0. A verdict is "better" or "worse" only where the difference stands out from the seeds'
noise, corrected for the number of comparisons; otherwise it is "not distinguishable".
"""
_EXAMPLES = """\
  sae-plugins study list                          the packaged studies
  sae-plugins study show quick > mine.yaml        one of them, to change
  sae-plugins study run mine.yaml                 train, evaluate, compare, report; goes on where
                                                  it was, and does only what a change needs
  sae-plugins study status mine.yaml              what is done, and what is to do
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
"""


def _list(_: Line, problems: Problems) -> int:
    problems.stop()
    from sae_plugins import studies
    from sae_plugins.study.spec import load

    print(terminal.table({name: load(name).description for name in studies.names()}))
    return 0


def _show(line: Line, problems: Problems) -> int:
    problems.stop()
    from sae_plugins.study.spec import as_yaml, load

    print(as_yaml(load(line.operands[0])), end="")
    return 0


def _run(line: Line, problems: Problems) -> int:
    cache: Folder | None = None
    with problems:
        cache = _cache(line.given)
    study, folder, known = _given(line, problems)
    from sae_plugins.study.execute import run

    _print_plan(study, known, folder)
    _print_stale(known, folder)
    started = time.perf_counter()
    with begun():
        with closing(StudyProgress()) as progress:
            try:
                run(study, folder, line.given.get("jobs"), progress, cache)
            except OSError as error:
                raise SaePluginsError(
                    f"{folder}: {error}; what is done is kept, and the same command goes on"
                ) from error
        print(f"done in {(time.perf_counter() - started) / 60:.1f} min")
        findings = _reported(line, problems)
        if not findings.trained:
            raise SaePluginsError(
                "only pilots were trained: none of the wanted L0s is within their reach; change "
                "the values under sparsity as the warnings say"
            )
    return int(bool(findings.failures))


def _cache(given: Mapping[str, Any]) -> Folder | None:
    """Where the language models' activations are to be kept."""
    from sae_plugins.settings.settings import activation_cache

    if "cache_budget" in given and not given.get("activation_cache"):
        raise SaePluginsError("--cache_budget: it needs --activation_cache")
    return activation_cache(lambda name: given.get(name, all_flags()[name].default))


def _status(line: Line, problems: Problems) -> int:
    study, folder, known = _given(line, problems)
    _print_plan(study, known, folder)
    _print_stale(known, folder)
    return 0


def _report(line: Line, problems: Problems) -> int:
    return int(bool(_reported(line, problems).failures))


def _reported(line: Line, problems: Problems) -> Findings:
    """Write the report, and print what it comes to."""
    study, folder, known = _given(line, problems)
    if not folder.is_dir():
        raise SaePluginsError(
            f"--output_path {folder}: there is no such folder; run the study first"
        )
    from sae_plugins.base.files import write
    from sae_plugins.study import report
    from sae_plugins.study.gather import FINDINGS, gather

    there = any(cell.summary(folder) for cell in (*known.cells, *known.pilots))
    if not there and (folder / FINDINGS).exists():
        _print_stale(known, folder)
        raise SaePluginsError(
            f"{folder} has no SAE of this study, but an earlier report, which stays"
        )
    findings = gather(Path(line.operands[0]).stem, study, folder)
    with begun():
        try:
            write(folder / FINDINGS, findings.model_dump_json(indent=1) + "\n")
            page = report.write(findings, folder)
        except OSError as error:
            raise SaePluginsError(f"{folder}: the report could not be written: {error}") from error
    _print_verdicts(findings)
    print(f"the report: {page}")
    for text in findings.failures:
        print(f"failed: {text}", file=sys.stderr)
    return findings


def _given(line: Line, problems: Problems) -> tuple[Study, Path, StudyPlan]:
    """The study, its folder, and the plan as far as it is known."""
    from sae_plugins.study.spec import read

    study: Study | None = None
    known: StudyPlan | None = None
    name = "".join(line.operands[:1])
    folder = Path(line.given.get("output_path") or Path("studies") / Path(name).stem).expanduser()
    if folder.exists() and not folder.is_dir():
        problems.add(f"--output_path {folder} is a file; name a folder")
    if name:
        study = read(name, problems)
    if study is not None:
        from sae_plugins.study.execute import plan_of

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
        Flag(
            "jobs",
            "int",
            "processes, each with the language model in memory (default: one per core on a CPU, "
            "one on a GPU)",
        ),
        *(replace(our_flags()[name], group="") for name in ("activation_cache", "cache_budget")),
    )
}


def _action(
    name: str,
    summary: str,
    run: Callable[[Line, Problems], int],
    *flags: str,
    operand: str = "STUDY",
) -> Command:
    own = {flag: _FLAGS[flag] for flag in flags}
    return Command(f"study {name}", summary, run, operand, flags=lambda: own)


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
            *("output_path", "jobs", "activation_cache", "cache_budget"),
        ),
        _action("status", "what is done, and what is to do", _status, "output_path"),
        _action("report", "write the report of what there is so far", _report, "output_path"),
    ),
)


# -- what is printed -------------------------------------------------------------------------------


def _print_plan(study: Study, known: StudyPlan, folder: Path) -> None:
    """A table of the arms: how many SAEs there are to be, and how many there are."""
    from rich.console import Console
    from rich.table import Table

    from sae_plugins.study.cells import grouped
    from sae_plugins.study.execute import failure

    cells = [*known.pilots, *known.cells]
    failures = {cell: reason for cell in cells if (reason := failure(cell, folder))}
    table = Table(title=str(folder), title_justify="left")
    for column in ("model", "arm", "sparsities"):
        table.add_column(column)
    for column in ("SAEs", "trained", "failed"):
        table.add_column(column, justify="right")
    for (model, arm), members in grouped(cells, lambda cell: (cell.model, cell.arm)).items():
        trained = sum(cell.summary(folder) is not None for cell in members)
        failed = sum(cell in failures for cell in members)
        values = dict.fromkeys(cell.sparsity for cell in members if not cell.pilot)
        shown = ", ".join(values) or "found by pilots"
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
        print(f"{model}: {', '.join(spec.suites) or 'no suites'}")
    for warning in known.warnings:
        print(f"warning: {warning}")


def _print_stale(known: StudyPlan, folder: Path) -> None:
    from sae_plugins.study.execute import stale

    if old := stale(known, folder):
        print(
            f"{len(old)} SAEs in {folder / 'saes'} are made from other settings, data or code than "
            f"this study's, and are not used: {old[0].name}{', ...' if len(old) > 1 else ''}"
        )
    for change, count in known.changes.items():
        print(f"{count} SAE{'s are' if count > 1 else ' is'} to be trained again: {change}")


def _print_verdicts(findings: Findings) -> None:
    """How many verdicts of each kind every arm has got."""
    from rich.console import Console
    from rich.table import Table

    words = ("better", "worse", "not distinguishable", "no verdict")
    table = Table(title=f"against {findings.study.reference}, at equal L0", title_justify="left")
    table.add_column("arm")
    for word in words:
        table.add_column(word, justify="right")
    counts: dict[str, Counter[str]] = {}
    for contrast in findings.contrasts:
        counts.setdefault(contrast.arm, Counter())[contrast.comparison.verdict] += 1
    for arm, count in counts.items():
        table.add_row(arm, *(str(count[word] or "") for word in words))
    if counts:
        Console().print(table)
    for warning in findings.warnings:
        print(f"warning: {warning}")
