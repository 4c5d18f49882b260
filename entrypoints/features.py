"""`sae-plugins features`: pages that show what each feature of an SAE fires on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sae_plugins.base.devices import check_device
from sae_plugins.base.errors import Problems, SaePluginsError
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.progress import FeaturesProgress
from sae_plugins.eval_suites.evaluation.sources import check_source
from sae_plugins.features.folder import check_place, default_place
from sae_plugins.runs.places import check_places
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag

_ABOUT = """\
Look at the features of an SAE: a folder with a page that opens from disk, without a network. It
lists all features, with search and sort, and shows of each what it fires on most and otherwise, how
strongly, which tokens it promotes, and which features are near it or fire with it. Beside a second
SAE of the same hook, it shows each feature's twin there. An SAE is the folder of a run, any folder
that SAELens or dictionary_learning saved, or RELEASE:SAE_ID from the Hugging Face Hub.
"""
_EXAMPLES = """\
  sae-plugins features runs/demo                          open features/demo/index.html
  sae-plugins features runs/demo runs/other               and each feature's twin in the other SAE
  sae-plugins features runs/demo --tokens 1000000 --output_path pages --overwrite
  sae-plugins features runs/demo --dataset_path texts.jsonl
"""
_NOTES = """\
The text is the one that the SAE was trained on, from its start, where held-out text is, or the
embedded world's own held-out text. No activations at special tokens such as BOS are shown.
"""
_FLAGS = {
    flag.name: flag
    for flag in (
        Flag("tokens", "int", "how many tokens to read; fewer if the text ends before", 100_000),
        Flag("output_path", "none | str", "folder of the pages (default: in features/, called as "
             "the SAE)"),
        Flag("overwrite", "bool", "replace the feature pages in that folder", False),
        Flag("format", "choice", "page: to look at in a browser; neuronpedia: the JSON files that "
             "SAEDashboard writes and its users upload, of one SAE", "page",
             choices=("page", "neuronpedia")),
        Flag("dataset_path", "none | str", "another text: a file, a folder, or a name on the Hub"),
        Flag("dataset_revision", "none | str", "branch, tag or commit of it on the Hub"),
        Flag("dataset_config", "none | str", "config of a --dataset_path that has several"),
        Flag("dataset_split", "none | str", "split of a --dataset_path (train)"),
        Flag("text_column", "none | str", "column of a --dataset_path that is read"),
        Flag("device", "none | str", "cpu, cuda, cuda:1 (default: cuda if there is one)"),
        Flag("model_class_name", "none | choice", "how the language model is loaded (default: as a "
             "HookedTransformer where TransformerLens can do that)",
             choices=("HookedTransformer", "TransformerBridge")),
    )
}  # fmt: skip
_OF_DATASET = ("dataset_revision", "dataset_config", "dataset_split", "text_column")


def _run(line: Line, problems: Problems) -> int:
    """Make the pages."""
    given = {name: line.given.get(name, flag.default) for name, flag in _FLAGS.items()}
    problems.add(*_wrong_sources(line), *_wrong_flags(given))
    with problems:
        check_places(given)
    named = given["output_path"]
    output = default_place(line.operands) if named is None else Path(named).expanduser()
    if named is not None or not problems:  # without SAEs, there is no name
        with problems:
            check_place(output, given["overwrite"])
    if given["device"] is not None and not problems:  # asking torch takes seconds
        with problems:
            check_device("device", given["device"])
    problems.stop()
    from sae_plugins.features.build import Request, build, export
    from sae_plugins.features.text import FLAGS

    request = Request(
        line.operands,
        output,
        given["tokens"],
        {name: given[name] for name in FLAGS},
        given["overwrite"],
        given["device"] or _device(),
        given["model_class_name"],
    )
    with closing(FeaturesProgress(given["tokens"])) as progress:
        if given["format"] == "neuronpedia":
            print(f"{export(request, progress)}: batch-0.json and so on, to upload to Neuronpedia")
            return 0
        pages = build(request, progress)
    for note in pages.index["notes"]:
        print(f"note: {note}")
    for about in pages.index["saes"]:
        fires, all_of_them = sum(count > 0 for count in about["count"]), len(about["count"])
        twins = "" if about["twins"] is None else f", {about['twins']:.0%} of these have a twin"
        if about["twins"]:
            twins += f" (median activation cosine {about['twins_median']:.2f})"
        print(
            f"{about['name']}: {fires:,} of {all_of_them:,} features fire{twins}; "
            f"{all_of_them - fires:,} fire at none of {pages.index['counted']:,} tokens"
        )
    print(f"open {pages.page} in a browser")
    return 0


COMMAND = Command(
    "features",
    "look at the features of an SAE",
    _run,
    "SAE...",
    about=_ABOUT,
    examples=_EXAMPLES,
    notes=_NOTES,
    flags=lambda: _FLAGS,
)


def _wrong_sources(line: Line) -> Iterator[str]:
    if line.unclear:
        return
    if not 1 <= len(line.operands) <= 2:
        yield (
            f"name one SAE or two, and not {len(line.operands)}: the folder of a run, or "
            "RELEASE:SAE_ID, before the flags; see --help"
        )
        return
    if len(line.operands) == 2 and line.given.get("format") == "neuronpedia":
        yield "--format neuronpedia writes one SAE: name one"
    for source in line.operands:
        try:
            check_source(source)
        except SaePluginsError as error:
            yield from map(str, error.args)


def _wrong_flags(given: Mapping[str, Any]) -> Iterator[str]:
    if given["tokens"] < 1:
        yield f"--tokens {given['tokens']}: at least 1 must be read"
    for name in _OF_DATASET:
        if given[name] is not None and given["dataset_path"] is None:
            yield f"--{name} {given[name]}: it says how a --dataset_path is read; give that, too"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
