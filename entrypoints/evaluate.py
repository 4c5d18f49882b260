"""`sae-plugins evaluate`: from SAEs and suites to a folder of results, tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.devices import check_device
from sae_plugins.base.errors import Problems, SaePluginsError, begun, did_you_mean, nearest
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.evaluate_flags import (
    ABOUT,
    EXAMPLES,
    FLAGS,
    GROUPS,
    NOTES,
    suite_list,
)
from sae_plugins.entrypoints.evaluate_output import (
    dry_run,
    list_suites,
    print_failures,
    print_plan,
    print_results,
)
from sae_plugins.entrypoints.evaluate_suites import chosen_suites, with_settings
from sae_plugins.entrypoints.progress import RowsProgress
from sae_plugins.eval_suites import DATA, PRESETS
from sae_plugins.settings.command_line import Line

if TYPE_CHECKING:
    from sae_plugins.eval_suites.evaluation.evaluate import Evaluation, Request
    from sae_plugins.eval_suites.suite import Suite


SEEDS = 2**32
"""numpy takes no seeds from here on."""


def _run(line: Line, problems: Problems) -> int:
    """Evaluate; 1 if a row has failed."""
    names, given = chosen_suites(line, problems), line.given
    if given.get("list"):
        problems.stop()
        return list_suites(names)
    if not line.operands and not line.unclear:
        problems.add(
            "name an SAE: the folder of a run, or RELEASE:SAE_ID, before the flags; see --help"
        )
    problems.add(*_wrong_seeds(given.get("seed", [])))
    folder = Path(given.get("output_path", FLAGS["output_path"].default)).expanduser()
    problems.add(*_wrong_places({**given, "output_path": folder}))
    on = given.get("model_name")
    preset = given.get("preset") or (PRESETS[0] if problems else default_preset(line.operands, on))
    suites = with_settings(names, preset, bool(given.get("exact")), line.options, problems)
    if suites and not any(suite.needs_model for suite, _ in suites.values()):
        for name in ("data", "model_name", "model_class_name"):
            if given.get(name) is not None:
                problems.add(
                    f"--{name} {given[name]}: no suite of {', '.join(suites)} uses it; leave it out"
                )
    if given.get("device") is not None and not problems:  # asking torch takes seconds
        with problems:
            check_device("device", given["device"])
    problems.stop()
    request = _request(line, folder, preset, suites)
    from sae_plugins.eval_suites.evaluation.evaluate import Evaluation

    print("loading the SAEs ...", flush=True)
    evaluation = Evaluation(request)
    if given.get("dry_run"):
        return dry_run(evaluation)
    print_plan(evaluation)
    with closing(RowsProgress(len(evaluation.rows))) as progress, begun():
        evaluation.run(progress)
    print_results(evaluation)
    with begun():
        _draw(evaluation)
    return print_failures(evaluation)


COMMAND = Command(
    "evaluate",
    "evaluate SAEs",
    _run,
    "SAE...",
    about=ABOUT,
    examples=EXAMPLES,
    notes=NOTES,
    flags=lambda: FLAGS,
    groups=GROUPS,
    lists=suite_list,
    owners="suite",
)


def _wrong_seeds(seeds: Sequence[int]) -> Iterator[str]:
    for seed in dict.fromkeys(seeds):
        if not 0 <= seed < SEEDS:
            yield f"--seed {seed}: it must be at least 0 and less than {SEEDS}"
        if seeds.count(seed) > 1:
            yield f"--seed {seed} is given twice: name each seed once"


def _wrong_places(given: Mapping[str, Any]) -> Iterator[str]:
    """Flags that name a file or nothing where a folder must be."""
    for name in ("output_path", "cache_path"):
        folder = Path(given.get(name) or ".").expanduser()
        if folder.exists() and not folder.is_dir():
            yield f"--{name} {folder} is a file; name a folder"
    data = given.get("data")
    if data not in (None, *DATA) and not Path(data).expanduser().is_dir():
        near = f"; {did_you_mean(data, DATA)}" if nearest(data, DATA) else ""
        yield f"--data {data}: neither 'world' nor 'hub' nor a folder{near}"


def default_preset(sources: Iterable[str], model_name: str | None = None) -> str:
    """`quick` where all SAEs of language models are of the embedded one; it proves nothing else.

    Args:
        sources: the SAEs.
        model_name: of the language model, where it is another than theirs.
    """
    from sae_plugins.base.errors import HubError
    from sae_plugins.base.files import read_json
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
            return str(read_json(folder / "cfg.json")["metadata"]["model_name"])
        except (OSError, ValueError, LookupError, TypeError):
            return "dictionary_learning" if (folder / "ae.pt").is_file() else None

    models = {model_name or model(source) for source in sources} - {None}
    models = {name for name in models if not str(name).startswith("synthetic:")}
    return "quick" if models == {NAME} else "canonical"


def _request(
    line: Line, folder: Path, preset: str, suites: Mapping[str, tuple[Suite, Any]]
) -> Request:
    from sae_plugins.eval_suites.evaluation.evaluate import Request
    from sae_plugins.eval_suites.inputs.cache import default_folder  # which imports torch

    given = line.given
    cache = given.get("cache_path")
    return Request(
        sources=[str(Path(s).expanduser()) if s.startswith("~") else s for s in line.operands],
        suites=suites,
        seeds=given.get("seed", FLAGS["seed"].default),
        preset=preset,
        output_path=folder,
        cache_path=Path(cache).expanduser() if cache else default_folder(),
        data=given.get("data"),
        device=given.get("device") or _default_device(),
        model_class=given.get("model_class_name"),
        model_name=given.get("model_name"),
    )


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _draw(evaluation: Evaluation) -> None:
    """Draw the figures of all results with these settings, and say where everything is."""
    from sae_plugins.eval_suites.evaluation.folder import DETAILS_TABLE, FIGURES, RESULTS_TABLE
    from sae_plugins.eval_suites.evaluation.manifest import MANIFEST
    from sae_plugins.eval_suites.evaluation.tables import by_suite

    output = evaluation.output
    alike = {(row.suite, row.settings) for row in evaluation.rows}
    rows = [row for row in output.manifest.rows if (row.suite, row.settings) in alike]
    found = output.results(rows)
    if not found:
        return
    from sae_plugins.eval_suites.evaluation.figures import save_all

    results = by_suite(found, [subject.hash for subject in evaluation.subjects])
    try:
        drawn = save_all(results, output.path / FIGURES)
    except OSError as error:
        raise SaePluginsError(
            f"the figures could not be written: {error.strerror or error}; all results are in "
            f"{output.path}"
        ) from error
    figures = f", {FIGURES}/" if drawn else ""
    files = f"{RESULTS_TABLE}, {DETAILS_TABLE}, {MANIFEST}{figures}"
    print(f"in {output.path}: {files}, and a folder per SAE")
