"""What `sae-plugins evaluate` prints: suites explained, the plan, results and failures."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sae_plugins.entrypoints import terminal
from sae_plugins.entrypoints.fields import bounds, type_name

if TYPE_CHECKING:
    from sae_plugins.eval_suites.evaluation.evaluate import Evaluation
    from sae_plugins.eval_suites.evaluation.results import Result
    from sae_plugins.eval_suites.suite import Metric, Suite

_PAPERS_PLACE = ("gemma-2-2b", "blocks.19.hook_resid_post")


def list_suites(names: Iterable[str]) -> int:
    """Print each suite's metrics, from the field in the results to what it means, and settings."""
    from rich.table import Table
    from rich.text import Text

    from sae_plugins.eval_suites.registry import load, summaries

    console, about = terminal.console(), summaries()
    arrows = _arrows(console)
    for name in names:
        suite = load(name)
        console.print(Text(f"{name}: {about[name]}", style="bold"))
        table = Table(box=None, padding=(0, 2, 0, 2), show_edge=False)
        for column in ("metric", "in papers", "better", "meaning"):
            table.add_column(column, overflow="fold", no_wrap=column == "metric")
        for metric in suite.metrics:
            style = "bold" if metric.headline else ""
            cells = (metric.name, metric.paper, arrows[metric.better], metric.meaning)
            table.add_row(*(Text(cell) for cell in cells), style=style)
        console.print(table)
        console.print("  settings:")
        width = console.width
        for field, info in suite.Settings.model_fields.items():
            left = f"    --{name}.{field} {type_name(info.annotation)}   {bounds(info)}"
            console.print(Text(left))
            if info.description:
                console.print(Text(textwrap.fill(
                    info.description, width, initial_indent=" " * 8, subsequent_indent=" " * 8
                )))  # fmt: skip
        presets = {k: v for k, v in suite.presets.items() if v}
        for preset, values in presets.items():
            shown = ", ".join(f"{key} {value}" for key, value in values.items())
            console.print(Text(f"    --preset {preset}: {shown}"))
        console.print()
    console.print("Bold metrics are in the table that an evaluation prints, and in results.csv.")
    return 0


def _arrows(console: Any) -> dict[str, str]:
    if console.encoding.lower().startswith("utf"):
        return {"higher": "↑", "lower": "↓", "neither": ""}
    return {"higher": "(higher)", "lower": "(lower)", "neither": ""}


def print_plan(evaluation: Evaluation) -> None:
    """What is about to be evaluated, and what the user should know."""
    request = evaluation.request
    hooks = dict.fromkeys(
        f"{s.model_name}, {s.hook_name}" if s.hook_name else s.model_name
        for s in evaluation.subjects
    )
    shown = {
        "SAEs": f"{len(evaluation.subjects)} of {'; '.join(hooks) or 'no model'}",
        "suites": f"{', '.join(request.suites)} (preset {request.preset})",
        "seeds": ", ".join(map(str, request.seeds)),
        "rows": f"{len(evaluation.rows)}, one per suite, SAE and seed",
        "folder": str(request.output_path),
        "cache": str(request.cache_path),
    }
    for name, value in shown.items():
        print(f"{name:<10}{value}")
    for name, kind in evaluation.language_models().items():
        print(f"{'model':<10}{name}: {kind}")
    for note in [*evaluation.notes, *_paper_notes(evaluation)]:
        print(f"note: {note}")
    print(flush=True)


def _paper_notes(evaluation: Evaluation) -> list[str]:
    model, hook = _PAPERS_PLACE
    others = [s.name for s in evaluation.subjects if (s.model_name, s.hook_name) != _PAPERS_PLACE]
    if evaluation.request.preset != "paper" or not others:
        return []
    return [f"the papers' SAEs are of {model} at {hook}; not so {', '.join(others)}"]


def dry_run(evaluation: Evaluation) -> int:
    """Print the rows, and what those that are left read and keep; the exit code."""
    from sae_plugins.base.files import size

    forecast = evaluation.forecast()
    print_plan(evaluation)
    words = {"ok": "done", "planned": "to do"}
    for row in evaluation.rows:
        reason = f": {row.reason}" if row.reason else ""
        print(f"  {words.get(row.status, row.status):<15}{row.suite}, {row.sae}, seed {row.seed}"
              f"{reason}")  # fmt: skip
    shared = [cost for _, first, cost in forecast.costs if first]
    folder = evaluation.request.cache_path
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    print(f"\nto do: {len(forecast.costs)} rows of {len(evaluation.rows)}")
    print(f"language-model tokens: {sum(cost.llm_tokens for cost in shared):,}")
    print(f"tokens through SAEs: {sum(cost.sae_tokens for _, _, cost in forecast.costs):,}")
    for sent in evaluation.to_send():
        print(sent)
    print(f"disk in the cache: up to {size(sum(cost.disk for cost in shared))}, {size(free)} free")
    return exit_code(evaluation)


def print_results(evaluation: Evaluation) -> None:
    """A table per suite: headline metrics by SAE, mean ± sd over seeds; and whether L0 differs."""
    from sae_plugins.eval_suites.evaluation.tables import by_suite, unlike

    console = terminal.console()
    found = evaluation.output.results(evaluation.rows)
    results = by_suite(found, [subject.hash for subject in evaluation.subjects])
    for name, (suite, _) in evaluation.request.suites.items():
        if name in results:
            console.print(_table(suite, results[name], _arrows(console)))
    for sentence in unlike(found):
        print(f"note: {sentence}")


def _table(suite: Suite, saes: Mapping[str, Sequence[Result]], arrows: Mapping[str, str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from sae_plugins.eval_suites.evaluation.tables import cell, headlines

    columns: dict[str, Metric] = {}
    for results in saes.values():
        for result in results:
            columns |= headlines(suite, result)
    seeds = max(len(results) for results in saes.values())
    spread = f", mean ± sd of {seeds} seeds" if seeds > 1 else ""
    table = Table(title=Text(f"{suite.name}{spread}"), title_justify="left")
    table.add_column("SAE", overflow="fold")
    for name, metric in columns.items():
        heading = f"{name.replace('_', ' ')} {arrows[metric.better]}".strip()
        table.add_column(Text(heading), justify="right", vertical="bottom")
    for label, results in saes.items():
        table.add_row(Text(label), *(Text(cell(results, name)) for name in columns))
    return table


def print_failures(evaluation: Evaluation) -> int:
    """What does not apply and what has failed, a line per reason and SAEs; the exit code."""
    for status, heading in (("not applicable", "not applicable"), ("failed", "FAILED")):
        groups: dict[tuple[str, str | None], dict[str, list[int]]] = {}
        for row in evaluation.rows:
            if row.status == status:
                saes = groups.setdefault((row.suite, row.reason), {})
                saes.setdefault(row.sae, []).append(row.seed)
        lines: dict[str, list[str]] = {}
        for (suite, reason), saes in groups.items():
            seeds = {", ".join(map(str, each)) for each in saes.values()}
            which = f", seed {seeds.pop()}" if status == "failed" and len(seeds) == 1 else ""
            lines.setdefault(f"of {', '.join(saes)}{which}: {reason}", []).append(suite)
        for line, suites in lines.items():
            print(f"{heading}: {', '.join(suites)} {line}")
    return exit_code(evaluation)


def exit_code(evaluation: Evaluation) -> int:
    """1 if a row has failed."""
    return int(any(row.status == "failed" for row in evaluation.rows))
