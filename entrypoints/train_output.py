"""What `sae-plugins train` prints: what is about to be trained, and what came of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.ranks import ranks
from sae_plugins.base.secrets import redacted
from sae_plugins.entrypoints.train_disk import bytes_of_buffer

if TYPE_CHECKING:
    from rich.console import Console

    from sae_plugins.runs.run_folder import RunFolder
    from sae_plugins.runs.setup import Setup
    from sae_plugins.settings.settings import Settings


def print_plan(
    settings: Settings,
    setup: Setup,
    folder: RunFolder,
    done: int | None,
    each: int,
    cached: str | None,
) -> None:
    """What is about to be trained, and what the user should know.

    Args:
        settings: the run's.
        setup: what it trains on.
        folder: where it is kept.
        done: how many steps are, of a run that goes on.
        each: bytes of a checkpoint.
        cached: what is said of the activations that are kept, if any are.
    """
    from sae_plugins.base.files import size
    from sae_plugins.runs.logs import described

    config, batch = setup.sae_config, settings.get("train_batch_size_tokens")
    waiting = bytes_of_buffer(settings, setup)
    where = "" if settings.is_synthetic else f" at {settings.get('hook_name')}"
    rows: dict[str, str | Sequence[str]] = {
        "model": f"{settings.model_name}{where}",
        "loaded as": setup.loaded_as,
        "SAE": f"{settings.architecture}, {config.d_in} -> {config.d_sae} features",
        "plugins": " -> ".join(_described(settings)),
        "training": f"{settings.batches} steps of {batch} tokens, seed {settings.get('seed')}, on "
        f"{config.device}",
        "folder": str(folder.path),
        "checkpoints": f"{_when(settings)}, {size(each)} each"
        + (f", {size(waiting)} of it waiting activations" if waiting else ""),
    }
    logs = [*described(settings.get("log_to") or (), folder.path, settings.get("trackio_project"))]
    if settings.data_shards > 1:
        readers = ranks().size
        reading = f", read by {readers} ranks" if readers > 1 else ""
        rows["data shards"] = f"{settings.data_shards}{reading}"
    if logs:
        rows["metrics in"] = logs
    if cached is not None:
        rows["activations"] = cached
    if done is not None:
        rows["resumed"] = f"after step {done}"
    print_rows(rows)
    for note in settings.notes:
        print(f"note: {note}")


def print_rows(rows: Mapping[str, str | Sequence[str]]) -> None:
    """Names, and what they are beside them, in one line or several."""
    for name, value in rows.items():
        lines = [value] if isinstance(value, str) else value
        for place, line in enumerate(lines):
            print(f"{'' if place else name:<12}{line}")


def _when(settings: Settings) -> str:
    if not settings.is_saved_regularly:
        return "only when interrupted"
    every, keep = settings.get("checkpoint_every"), settings.get("keep_checkpoints")
    return f"every {every}{' steps' if every.isdigit() else ''}, the newest {keep} stay"


def _described(settings: Settings) -> Iterator[str]:
    """Each plugin with the options that are not its defaults."""
    for plugin, options in settings.plan.plugins:
        if plugin.name == "recorder":
            continue
        fields = plugin.Options.model_fields
        values = {name: getattr(options, name) for name in fields}
        given = {n: v for n, v in values.items() if v != fields[n].get_default()}
        changed = [f"{name} {value}" for name, value in redacted(given).items()]
        yield f"{plugin.name} ({', '.join(changed)})" if changed else plugin.name


def print_summary(
    title: str,
    rows: Mapping[str, Any],
    meanings: Mapping[str, str],
    console: Console | None = None,
) -> None:
    """Print a table of names and values, grouped by what precedes the first "/" of a name.

    Groups come in the order of their first row. Beside a group or a value stands what it is, if
    that is known.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sae_plugins.base.text import format_value

    groups: dict[str, list[tuple[str, Any]]] = {}
    for name, value in rows.items():
        group, slash, rest = name.partition("/")
        groups.setdefault(group if slash else "", []).append((rest if slash else name, value))
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for group, members in groups.items():
        if group:
            table.add_row(Text(group, style="bold"), "", Text(meanings.get(group, "")))
        for name, value in members:
            meaning = meanings.get(f"{group}/{name}" if group else name, "")
            shown = Text(f"  {name}" if group else name)
            table.add_row(shown, Text(format_value(value)), Text(meaning))
        table.add_section()
    (console or Console()).print(table)


def meanings(settings: Settings | None) -> dict[str, str]:
    """What the rows of a summary are, by name; without settings, those of plugins are left out."""
    from sae_plugins.eval_suites.evaluation.metrics import OF_THE_RUN
    from sae_plugins.framework.resolve import UNCALIBRATED
    from sae_plugins.runs.summary import HELDOUT, MEANINGS

    of_groups: dict[str, Mapping[str, str]] = {
        place: {metric.name: metric.meaning for metric in OF_THE_RUN}
        for place in (HELDOUT, UNCALIBRATED)
    }
    if settings is not None:
        of_groups |= {plugin.name: plugin.meanings for plugin, _ in settings.plan.plugins}
    return MEANINGS | {
        f"{group}/{name}": meaning
        for group, known in of_groups.items()
        for name, meaning in known.items()
    }


def print_end(folder: Path, settings: Settings | None) -> None:
    """What has come of a run, which is in its place, and what to do next."""
    from sae_plugins.base.files import read_json
    from sae_plugins.runs.folder import SUMMARY
    from sae_plugins.runs.silent import WHY, silent

    summary = read_json(folder / SUMMARY)
    measured = summary.pop("profile", None)
    counts = silent(folder)
    shown = summary | {each.name: each.count for each in counts}
    known = meanings(settings) | {each.name: each.tokens for each in counts}
    print_summary(str(folder), shown, known)
    if len(counts) > 1:
        print(f"note: {WHY}")
    if measured:
        print_profile(measured)
    print_next(folder)


def print_next(folder: Path) -> None:
    """Where the figures are, and what to do with the SAE."""
    from sae_plugins.eval_suites.saebench.installed import is_installed
    from sae_plugins.runs.folder import FIGURES, SYNTHETIC_RUNNER_CONFIG

    drawn = sorted((folder / FIGURES).glob("**/*.png"))
    name = shlex.quote(str(folder))
    rows: dict[str, str | list[str]] = {}
    if drawn:
        shown = ", ".join(str(path.relative_to(folder / FIGURES)) for path in drawn)
        rows["figures"] = f"{folder / FIGURES}: {shown}"
    look = f"sae-plugins features {name}   # what each feature fires on"
    score = f"sae-plugins evaluate {name}"
    synthetic = (folder / SYNTHETIC_RUNNER_CONFIG).exists()  # which has no text to look at
    rows["next"] = [score] if synthetic else [look, *([score] if is_installed() else [])]
    rows["in Python"] = f"SAE.load_from_disk({json.dumps(str(folder), ensure_ascii=False)})"
    print_rows(rows)


def print_profile(measured: Mapping[str, Any], console: Console | None = None) -> None:
    """Print where the time went: what took most first, and each part of it in its order."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sae_plugins.base.files import size

    rows, whole, held = measured["parts"], measured["seconds"], measured["held_bytes"]
    has_peaks = any(row["peak_bytes"] is not None for row in rows)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["part"], []).append(row)
    table = Table(title=Text("where the time went"), title_justify="left")
    table.add_column("")
    for column in ("time", "share", "calls", *(["peak memory"] if has_peaks else [])):
        table.add_column(column, justify="right")

    def add(name: str, members: Sequence[Mapping[str, Any]], style: str = "") -> None:
        seconds = sum(row["seconds"] for row in members)
        cells = [f"{seconds:,.2f} s", f"{seconds / max(whole, 1e-9):.1%}"]
        calls = members[0]["calls"] if len(members) == 1 else 0
        cells.append(f"{calls:,}" if calls else "")
        if has_peaks:
            peak = max(row["peak_bytes"] for row in members)
            cells.append(size(peak) if peak else "")
        table.add_row(Text(name), *map(Text, cells), style=style)

    for name, members in sorted(groups.items(), key=_other_last):
        add(name, members, "bold" if len(members) > 1 else "")
        for row in members if len(members) > 1 else ():
            add(f"  {row['detail']}", [row])
    table.add_section()
    add("the whole", [*rows], "bold")
    console = console or Console()
    console.print(table)
    kept = ", ".join(f"{name} {size(count)}" for name, count in held.items())
    console.print(Text(f"tensors held when training ended: {kept}"))


def _other_last(group: tuple[str, Sequence[Mapping[str, Any]]]) -> tuple[bool, float]:
    name, members = group
    return name == "other", -sum(row["seconds"] for row in members)
