"""`sae-plugins study`: run a study, see how far it is, and write its report."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import SaePluginsError, begun
from sae_plugins.entrypoints.progress import StudyProgress

if TYPE_CHECKING:
    from sae_plugins.study.cells import StudyPlan
    from sae_plugins.study.findings import Findings
    from sae_plugins.study.spec import Study

_DESCRIPTION = """\
Find out whether a method helps: train arms x sparsities x seeds in lockstep (one pass of the
language model for all of them), evaluate every SAE, and compare each arm with the reference arm at
equal L0. A verdict is "better" or "worse" only where the difference stands out from the seeds'
noise, corrected for the number of comparisons; otherwise it is "not distinguishable".
"""
_EXAMPLES = """\
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

examples:
  sae-plugins study list                          the packaged studies
  sae-plugins study show quick > mine.yaml        one of them, to change
  sae-plugins study run mine.yaml                 train, evaluate, compare, report; goes on where
                                                  it was, and does only what a change needs
  sae-plugins study status mine.yaml              what is done, and what is to do
  sae-plugins study report mine.yaml              the report of what there is so far
"""


def main(arguments: Sequence[str]) -> int:
    """Run `sae-plugins study`; the exit code: 1 if something of the study has failed.

    Raises:
        SaePluginsError: the user should change something.
    """
    parser = _parser()
    parsed = parser.parse_args(list(arguments))
    if parsed.action is None:
        parser.print_help()
        return 0 if not arguments else 2

    return int(parsed.function(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-plugins study",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    def action(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(function=function)
        if name != "list":
            added.add_argument(
                "study", metavar="STUDY", help="a name, or a file that ends in .yaml"
            )
        if name not in ("list", "show"):
            added.add_argument(
                "--output_path", metavar="DIR", help="the study's folder (default: studies/NAME)"
            )
        return added

    action("list", _list, "the packaged studies, and what they ask")
    action("show", _show, "a study as YAML, with those that it extends")
    run = action("run", _run, "train, evaluate and compare what is missing, and write the report")
    run.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes, each with the language model in memory (default: one per core on a CPU, "
        "one on a GPU)",
    )
    action("status", _status, "what is done, and what is to do")
    action("report", _report, "write the report of what there is so far")
    return parser


# -- the actions -----------------------------------------------------------------------------------


def _list(_: argparse.Namespace) -> int:
    from sae_plugins.study import spec

    for name in spec.names():
        text = f"{name:<24}{spec.load(name).description}"
        print(textwrap.fill(text, 98, subsequent_indent=24 * " "))
    return 0


def _show(parsed: argparse.Namespace) -> int:
    from sae_plugins.study.spec import as_yaml, load

    print(as_yaml(load(parsed.study)), end="")
    return 0


def _run(parsed: argparse.Namespace) -> int:
    study, folder = _given(parsed)
    if parsed.jobs is not None and parsed.jobs < 1:
        raise SaePluginsError(f"--jobs {parsed.jobs}: give 1 or more")
    from sae_plugins.study.execute import plan_of, run

    known = plan_of(study, folder)
    _print_plan(study, known, folder)
    _print_stale(known, folder)
    started = time.perf_counter()
    with begun():
        with closing(StudyProgress()) as progress:
            try:
                run(study, folder, parsed.jobs, progress)
            except OSError as error:
                raise SaePluginsError(
                    f"{folder}: {error}; what is done is kept, and the same command goes on"
                ) from error
        print(f"done in {(time.perf_counter() - started) / 60:.1f} min")
        findings = _reported(parsed)
        if not findings.trained:
            raise SaePluginsError(
                "only pilots were trained: none of the wanted L0s is within their reach; change "
                "the values under sparsity as the warnings say"
            )
    return int(bool(findings.failures))


def _status(parsed: argparse.Namespace) -> int:
    study, folder = _given(parsed)
    from sae_plugins.study.execute import plan_of

    known = plan_of(study, folder)
    _print_plan(study, known, folder)
    _print_stale(known, folder)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    return int(bool(_reported(parsed).failures))


def _reported(parsed: argparse.Namespace) -> Findings:
    """Write the report, and print what it comes to."""
    study, folder = _given(parsed)
    if not folder.is_dir():
        raise SaePluginsError(
            f"--output_path {folder}: there is no such folder; run the study first"
        )
    from sae_plugins.base.files import write
    from sae_plugins.study import report
    from sae_plugins.study.execute import plan_of
    from sae_plugins.study.gather import FINDINGS, gather

    known = plan_of(study, folder)
    there = any(cell.summary(folder) for cell in (*known.cells, *known.pilots))
    if not there and (folder / FINDINGS).exists():
        _print_stale(known, folder)
        raise SaePluginsError(
            f"{folder} has no SAE of this study, but an earlier report, which stays"
        )
    findings = gather(_name(parsed.study), study, folder)
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


def _given(parsed: argparse.Namespace) -> tuple[Study, Path]:
    from sae_plugins.study.spec import load

    folder = Path(parsed.output_path or Path("studies") / _name(parsed.study)).expanduser()
    if folder.exists() and not folder.is_dir():
        raise SaePluginsError(f"--output_path {folder} is a file; name a folder")
    return load(parsed.study), folder


def _name(study: str) -> str:
    return Path(study).stem


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
            f"{len(old)} SAEs in {folder / 'saes'} are of an earlier version of the study, of a "
            "plugin, of sae-plugins or of sae-lens, and are not used: "
            f"{old[0].name}{', ...' if len(old) > 1 else ''}"
        )


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
