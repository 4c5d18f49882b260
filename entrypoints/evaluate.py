"""`sae-plugins evaluate`: from SAEs and suites to a folder of results, tables and figures."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sae_plugins.settings.flags import Flag, UsageError, convert

if TYPE_CHECKING:
    from sae_plugins.eval_suites.evaluation.evaluate import Evaluation, Forecast, Request
    from sae_plugins.eval_suites.evaluation.manifest import Row
    from sae_plugins.eval_suites.evaluation.results import Result
    from sae_plugins.eval_suites.suite import Metric, Suite

PRESETS = ("canonical", "quick", "paper")
"""`suite.PRESETS`, without its imports; a test compares them."""
PAPERS_PLACE = ("gemma-2-2b", "blocks.19.hook_resid_post")
SEEDS = 2**32
"""numpy takes no seeds from here on."""

FLAGS = {
    flag.name: flag
    for flag in (
        Flag("suite", "list[str]", "suites to run; repeatable (default: all those below)"),
        Flag(
            "preset",
            "choice",
            "canonical: SAEBench's own settings, hours for Gemma-2-2B; quick: much less data, "
            "minutes, for a first look; paper: what the papers of the methods report (default "
            "quick for SAEs of the embedded model, canonical for others)",
            choices=PRESETS,
        ),
        Flag("seed", "list[int]", "one or more; each is a row of its own", 42),
        Flag("output_path", "str", "folder of the results; what is there already is kept and not "
             "computed again", "evaluations"),
        Flag("data", "str | none", "where the suites' data come from: world (embedded, offline), "
             "hub (the Hugging Face Hub), or a folder (default: what suits the model)"),
        Flag("device", "str | none", "cpu, cuda, cuda:1 (default: cuda if there is one)"),
        Flag("cache_path", "str | none", "folder of activations and probes of language models, "
             "which all SAEs share (default: sae-plugins/evaluation in the user's cache folder)"),
        Flag("exact", "bool", "switch off every shortcut that can move a number",
             False),
        Flag("dry_run", "bool", "say what would be done, and about what it takes; do nothing",
             False),
        Flag("list", "bool", "print each suite's metrics and settings, and what they mean", False),
    )
}  # fmt: skip


class EvaluationFailed(UsageError):
    """The evaluation began, and did not end; the message says what is kept."""

    exit_code = 1


def main(arguments: Sequence[str]) -> int:
    """Run `sae-plugins evaluate`; the exit code: 1 if a row has failed.

    Raises:
        UsageError: the user should change something.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text())
        return 0
    sources, given, settings = parse(arguments)
    names = chosen_suites(given, settings)
    if given.get("list"):
        return _list(names)
    if not sources:
        raise UsageError(
            "name an SAE: the folder of a run, or RELEASE:SAE_ID, before the flags; see --help"
        )
    preset = given.get("preset") or default_preset(sources)
    suites = _suites(names, preset, bool(given.get("exact")), settings)
    request = _request(sources, given, preset, suites)
    from sae_plugins.eval_suites.evaluation.evaluate import Evaluation
    from sae_plugins.eval_suites.evaluation.manifest import EvaluationError

    print("loading the SAEs ...", flush=True)
    try:
        evaluation = Evaluation(request)
    except EvaluationError as error:
        raise UsageError(str(error)) from error
    if given.get("dry_run"):
        return _dry_run(evaluation)
    _print_plan(evaluation)
    with _Progress(len(evaluation.rows)) as progress:
        try:
            evaluation.run(progress)
        except EvaluationError as error:
            raise EvaluationFailed(str(error)) from error
    _print_results(evaluation)
    _draw(evaluation)
    return _print_failures(evaluation)


# -- the command line ----------------------------------------------------------------------------


def parse(
    arguments: Sequence[str],
) -> tuple[list[str], dict[str, Any], dict[str, list[str]]]:
    """SAEs, values by flag, and texts by suite's setting ("core.context_size").

    SAEs come first, or after the value of a flag that takes just one.

    Raises:
        UsageError: an unknown flag, a missing or an unfit value.
    """
    sources: list[str] = []
    given: dict[str, Any] = {}
    settings: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        if not first.startswith("--"):
            sources.append(first)
            continue
        name, equals, value = first[2:].partition("=")
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        flag = FLAGS.get(name)
        if "." in name:
            settings[name] = values or ["true"]
        elif flag is None:
            raise UsageError(_unknown_flag(name))
        elif flag.is_list and values:
            words = [word for value in values for word in value.split(",") if word]
            more = words if name == "suite" else convert(flag, words)
            given[name] = [*given.get(name, []), *more]
        elif flag.type == "bool" and (not values or values[0].lower() not in BOOLEANS):
            given[name] = True
            sources += values
        elif not values:
            raise UsageError(f"--{name} needs a value: --{name} VALUE")
        else:
            given[name] = convert(flag, values[0])
            sources += values[1:]
    _check_seeds(given.get("seed", []))
    return sources, given, settings


BOOLEANS = ("true", "false", "yes", "no")


def _check_seeds(seeds: Sequence[int]) -> None:
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise UsageError(f"--seed {seed}: it must be at least 0 and less than {SEEDS}")
        if seeds.count(seed) > 1:
            raise UsageError(f"--seed {seed} is given twice: name each seed once")


def _unknown_flag(name: str) -> str:
    from sae_plugins.base.errors import did_you_mean

    near = did_you_mean(f"--{name}", [f"--{known}" for known in FLAGS])
    if near.startswith("known:"):
        near = "`sae-plugins evaluate --help` lists all flags"
    return f"there is no flag --{name}: {near}"


def chosen_suites(given: Mapping[str, Any], settings: Iterable[str]) -> list[str]:
    """The names of the suites to run; none is imported.

    Raises:
        UsageError: there is no such suite, or a setting belongs to one that is not chosen.
    """
    from sae_plugins.base.errors import PluginError, did_you_mean
    from sae_plugins.eval_suites import registry

    names = list(dict.fromkeys(given.get("suite") or registry.built_in()))
    for name in names:
        try:
            registry.find(name)
        except PluginError as error:
            hint = "" if "/" not in name else "; SAEs are named before the flags"
            raise UsageError(f"{error}{hint}") from error
    for key in settings:
        suite = key.partition(".")[0]
        if suite not in registry.names():
            raise UsageError(
                f"--{key}: no suite {suite!r} is installed: {did_you_mean(suite, names)}"
            )
        if suite not in names:
            raise UsageError(
                f"--{key}: the suite {suite!r} is not chosen; add --suite {suite}, or leave the "
                "setting out"
            )
    return names


def _load(name: str) -> Suite:
    from sae_plugins.base.errors import PluginError
    from sae_plugins.eval_suites import registry

    try:
        return registry.load(name)
    except PluginError as error:
        raise UsageError(str(error)) from error


def _suites(
    names: Iterable[str], preset: str, exact: bool, settings: Mapping[str, list[str]]
) -> dict[str, tuple[Suite, Any]]:
    """Each suite with its settings: the preset's, without shortcuts if so wished, then the flags'.

    Raises:
        UsageError: a suite cannot be imported, or a setting is unknown or unfit.
    """
    suites = {}
    for name in names:
        suite = _load(name)
        values = shortcuts_off(suite) if exact else {}
        for key, texts in settings.items():
            whose, _, field = key.partition(".")
            if whose == name:
                values[field] = setting_value(suite, field, texts)
        suites[name] = (suite, _validated(suite, preset, values))
    return suites


def default_preset(sources: Iterable[str]) -> str:
    """`quick` where all SAEs of language models are of the embedded one; it proves nothing else."""
    import json

    from sae_plugins.base.errors import HubError
    from sae_plugins.base.hub import local
    from sae_plugins.world import NAME

    def model(source: str) -> Any:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            try:
                folder = local(source, tries=1)
            except HubError:  # a release, or what is said when it is loaded
                return source if ":" in source else None
        try:
            return json.loads((folder / "cfg.json").read_text("utf-8"))["metadata"]["model_name"]
        except (OSError, ValueError, LookupError, TypeError):
            return "dictionary_learning" if (folder / "ae.pt").is_file() else None

    models = {model(source) for source in sources} - {None}
    models = {name for name in models if not str(name).startswith("synthetic:")}
    return "quick" if models == {NAME} else "canonical"


def shortcuts_off(suite: Suite) -> dict[str, Any]:
    """The settings that a suite marks as shortcuts, switched off."""
    fields = suite.Settings.model_fields.items()
    return {
        name: False
        for name, field in fields
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("shortcut")
    }


def setting_value(suite: Suite, name: str, texts: Sequence[str]) -> Any:
    """Texts as the setting's type has them: none, one value, or a list; wrong ones stay texts.

    Raises:
        UsageError: the suite has no such setting.
    """
    from pydantic import TypeAdapter, ValidationError

    from sae_plugins.base.errors import did_you_mean

    fields = suite.Settings.model_fields
    if name not in fields:
        raise UsageError(
            f"--{suite.name}.{name}: the suite {suite.name!r} has no setting {name!r}: "
            f"{did_you_mean(name, fields)}"
        )
    adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, fields[name].annotation))
    words = [word for text in texts for word in text.split(",") if word]
    readings: list[Any] = [words]
    if len(texts) == 1:
        none = [None] if texts[0].lower() in ("none", "null") else []
        readings = [*none, texts[0], words]
    for reading in readings:
        try:
            return adapter.validate_python(reading)
        except ValidationError:
            continue
    return " ".join(texts)


def _validated(suite: Suite, preset: str, values: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return suite.settings(preset, values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        whose = f"--{suite.name}.{key} {problem['input']!r}" if key else f"suite {suite.name}"
        raise UsageError(f"{whose}: {message}") from error


def _request(
    sources: Sequence[str],
    given: Mapping[str, Any],
    preset: str,
    suites: Mapping[str, tuple[Suite, Any]],
) -> Request:
    folder = Path(given.get("output_path", FLAGS["output_path"].default)).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_path {folder} is a file; name a folder")

    from sae_plugins.eval_suites.evaluation.evaluate import Request
    from sae_plugins.eval_suites.inputs.cache import default_folder  # which imports torch

    cache = given.get("cache_path")
    return Request(
        sources=[str(Path(s).expanduser()) if s.startswith("~") else s for s in sources],
        suites=suites,
        seeds=given.get("seed", [FLAGS["seed"].default]),
        preset=preset,
        output_path=folder,
        cache_path=Path(cache).expanduser() if cache else default_folder(),
        data=given.get("data"),
        device=given.get("device") or _default_device(),
    )


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# -- help ----------------------------------------------------------------------------------------

_INTRODUCTION = """\
usage: sae-plugins evaluate SAE... [--suite NAME...] [--preset canonical|quick|paper] [flags]

Evaluate SAEs with SAEBench: reconstruction, feature absorption, spurious correlation removal and
sparse probing; SAEs of synthetic models against the ground truth. An SAE is the folder of a run,
any folder that SAELens or dictionary_learning saved, or RELEASE:SAE_ID from the Hugging Face Hub.

examples:
  sae-plugins evaluate runs/demo                                 minutes, and offline for the demos
  sae-plugins evaluate runs/a runs/b --suite core absorption --seed 42 43 44
  sae-plugins evaluate runs/a --suite core --core.context_size 64
  sae-plugins evaluate runs/a --suite sparse-probing --sparse-probing.k_values 1 5
  sae-plugins evaluate gemma-scope-2b-pt-res-canonical:layer_12/width_16k/canonical --dry_run
  sae-plugins evaluate --list --suite core                       metrics and settings, explained

The same command again computes only what is missing or has failed. Evaluate SAEs of one hook
together: they share what is computed of the language model alone. Exit code: 0 all is well (a suite
that does not apply to an SAE says so), 1 a row has failed, 2 something is to be changed.
"""

_SETTINGS = """\
the suites' settings:
  --SUITE.SETTING VALUE..., as in --core.context_size 64; `sae-plugins evaluate --list` shows them.
"""


def help_text(width: int | None = None) -> str:
    """What `sae-plugins evaluate --help` prints."""
    from sae_plugins.eval_suites.registry import summaries

    width = min(width or shutil.get_terminal_size((100, 24)).columns, 120)
    about = summaries()
    column = max(map(len, about)) + 4
    suites = [_wrapped(f"  {name}", text, column, width) for name, text in about.items()]
    flags = [_wrapped(_left(flag), _text(flag), 35, width) for flag in FLAGS.values()]
    return "\n".join([_INTRODUCTION, "suites:", *suites, "", "flags:", *flags, "", _SETTINGS])


def _left(flag: Flag) -> str:
    kinds = {"suite": "NAME...", "seed": "N...", "device": "NAME", "data": "world|hub|FOLDER"}
    kind = kinds.get(flag.name, "" if flag.type == "bool" else "WORD" if flag.choices else "DIR")
    return f"  --{flag.name} {kind}".rstrip()


def _text(flag: Flag) -> str:
    return flag.help + (f" (default {flag.default})" if flag.default else "")


def _wrapped(left: str, text: str, column: int, width: int) -> str:
    lines = textwrap.wrap(text, max(width - column, 30)) or [""]
    return "\n".join([f"{left:<{column}}{lines[0]}", *(" " * column + line for line in lines[1:])])


def _list(names: Iterable[str]) -> int:
    """Print each suite's metrics, from the field in the results to what it means, and settings."""
    from rich.table import Table
    from rich.text import Text

    from sae_plugins.entrypoints.plugins import bounds, type_name
    from sae_plugins.eval_suites.registry import summaries

    console, about = _console(), summaries()
    arrows = _arrows(console)
    for name in names:
        suite = _load(name)
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


# -- what is printed ------------------------------------------------------------------------------


def _console() -> Any:
    """Standard output, wide where nobody's window bounds it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def _arrows(console: Any) -> dict[str, str]:
    if console.encoding.lower().startswith("utf"):
        return {"higher": "↑", "lower": "↓", "neither": ""}
    return {"higher": "(higher)", "lower": "(lower)", "neither": ""}


def _print_plan(evaluation: Evaluation) -> None:
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
    for note in [*evaluation.notes, *_paper_notes(evaluation)]:
        print(f"note: {note}")
    print(flush=True)


def _paper_notes(evaluation: Evaluation) -> list[str]:
    model, hook = PAPERS_PLACE
    others = [s.name for s in evaluation.subjects if (s.model_name, s.hook_name) != PAPERS_PLACE]
    if evaluation.request.preset != "paper" or not others:
        return []
    return [f"the papers' SAEs are of {model} at {hook}; not so {', '.join(others)}"]


class _Progress:
    """A bar over the rows on a terminal, else a line per finished row; both on standard error."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._stream = sys.stderr  # a suite may redirect it meanwhile
        self._total, self._done, self._began = total, 0, time.perf_counter()
        self._bar = tqdm(
            total=total,
            unit="row",
            file=self._stream,
            disable=not self._stream.isatty(),
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar:20}| {elapsed} {desc}",
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def stage(self, text: str) -> None:
        """Show what is being done now."""
        self._bar.set_description_str(text)

    def finished(self, row: Row, again: bool) -> None:
        """Count a row."""
        self._done += 1
        self._bar.update()
        if self._bar.disable:
            status = "ok, was there" if again else row.status
            print(
                f"{self._done}/{self._total} {row.suite}, {row.sae}, seed {row.seed}: {status} "
                f"({time.perf_counter() - self._began:.0f} s)",
                file=self._stream,
                flush=True,
            )


def _print_results(evaluation: Evaluation) -> None:
    """A table per suite: headline metrics by SAE, mean ± sd over seeds."""
    from sae_plugins.eval_suites.evaluation.tables import labels

    console = _console()
    found = evaluation.results(evaluation.rows)
    names = labels(row for row, _ in found)
    for name, (suite, _) in evaluation.request.suites.items():
        results: dict[str, list[Result]] = {}
        for row, result in found:
            if row.suite == name:
                results.setdefault(names[result.sae.hash], []).append(result)
        if results:
            console.print(_table(suite, results, _arrows(console)))


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


def _draw(evaluation: Evaluation) -> None:
    """Draw the figures of all results with these settings, and say where everything is."""
    from sae_plugins.eval_suites.evaluation.folder import DETAILS, FIGURES, RESULTS
    from sae_plugins.eval_suites.evaluation.manifest import MANIFEST
    from sae_plugins.eval_suites.evaluation.tables import labels

    folder = evaluation.folder
    alike = {(row.suite, row.settings) for row in evaluation.rows}
    rows = [row for row in evaluation.manifest.rows if (row.suite, row.settings) in alike]
    found = evaluation.results(rows)
    if not found:
        return
    from sae_plugins.eval_suites.evaluation.figures import save_all

    names = labels(row for row, _ in found)
    by_suite: dict[str, dict[str, list[Result]]] = {}
    for row, result in found:
        saes = by_suite.setdefault(row.suite, {})
        saes.setdefault(names[result.sae.hash], []).append(result)
    try:
        drawn = save_all(by_suite, folder / FIGURES)
    except OSError as error:
        raise EvaluationFailed(
            f"the figures could not be written: {error.strerror or error}; all results are in "
            f"{folder}"
        ) from error
    figures = f", {FIGURES}/" if drawn else ""
    print(f"in {folder}: {RESULTS}, {DETAILS}, {MANIFEST}{figures}, and a folder per SAE")


def _print_failures(evaluation: Evaluation) -> int:
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
    return _exit_code(evaluation)


def _exit_code(evaluation: Evaluation) -> int:
    return int(any(row.status == "failed" for row in evaluation.rows))


# -- a dry run ------------------------------------------------------------------------------------


def _dry_run(evaluation: Evaluation) -> int:
    """Print the rows, and about what those that are left take."""
    from sae_plugins.base.files import size

    forecast = evaluation.forecast()
    _print_plan(evaluation)
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
    print(f"disk in the cache: up to {size(sum(cost.disk for cost in shared))}, {size(free)} free")
    print(f"time: {_time(evaluation, forecast)}")
    return _exit_code(evaluation)


_EFFICIENCY = 0.4
"""Of a matrix product's speed, what a language model reaches."""


def _time(evaluation: Evaluation, forecast: Forecast) -> str:
    """About how long it takes; a guess from the numbers of multiplications."""
    if not forecast.costs:
        return "nothing is left to do"
    operations = 0.0
    counts = {s.model_name: _parameters(s.model_name) for s in evaluation.subjects}
    for subject, first, cost in forecast.costs:
        operations += 4.0 * subject.d_in * subject.d_sae * cost.sae_tokens
        if first and cost.llm_tokens:
            parameters = counts[subject.model_name]
            if parameters is None:
                return f"unknown, as is the size of {subject.model_name}"
            operations += 2.0 * parameters * cost.llm_tokens
    seconds = operations / (_EFFICIENCY * _speed(evaluation.request.device))
    return f"about {_duration(seconds)} on {evaluation.request.device}, besides loading and probes"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _speed(device: str) -> float:
    """Floating-point operations per second of a product of two matrices."""
    import torch

    n = 1024 if device == "cpu" else 4096
    matrix = torch.ones(n, n, device=device)
    float((matrix @ matrix)[0, 0])  # a warm-up; float() waits for the device
    begin, times = time.perf_counter(), 3
    for _ in range(times):
        product = matrix @ matrix
    float(product[0, 0])
    return 2.0 * n**3 * times / (time.perf_counter() - begin)


def _parameters(model_name: str) -> int | None:
    """How many parameters a language model has, if that is known without its weights."""
    from sae_plugins import world

    if model_name == world.NAME:
        return sum(file.stat().st_size for file in world.path().glob("*.safetensors")) // 4
    try:
        from huggingface_hub import model_info
        from transformer_lens.loading_from_pretrained import get_official_model_name

        found = model_info(get_official_model_name(model_name), timeout=5).safetensors
    except Exception:  # unknown there, or nobody answers
        return None
    return found.total if found else None
