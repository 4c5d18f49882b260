"""The files of a run's folder: what they are called, and which of those that lie there are its own.

A run lists what it has written in `files.json`, and nothing else in its folder is ever removed but
what has a name that is a run's alone, such as `cfg.json`. Where there is no list, as in
`unfinished/` and in folders of earlier versions, what is there tells which names a run gave: its
rows of metrics those of figures, its recipe those of copied code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from sae_plugins.base import yaml_files
from sae_plugins.base.code import read_modules
from sae_plugins.base.files import (
    read_json,
    read_rows,
    remove_empty_folders,
    remove_if_empty,
    write,
)
from sae_plugins.base.names import file_name, own_file_name
from sae_plugins.framework import plugin_files
from sae_plugins.framework.resolve import UNCALIBRATED
from sae_plugins.resume.files import files as checkpoints_in
from sae_plugins.resume.files import partial_files
from sae_plugins.resume.files import remove as remove_checkpoint

WEIGHTS = "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
METRICS = "metrics.jsonl"
METRICS_BY_FEATURE = "metrics_by_feature.jsonl"
CONFIG = "cfg.json"
RUNNER_CONFIG = "runner_cfg.json"
SYNTHETIC_RUNNER_CONFIG = "runner_config.json"
RECIPE = "run.yaml"
ORIGIN = "made_from.json"
"""Of an SAE of a study: the facts about what it was made from."""
SUMMARY = "summary.json"
TRAINING_SUMMARY = "training_summary.json"
FILES = "files.json"
"""The list of the files that a run has written."""
UNFINISHED = "unfinished"
FIGURES = "figures"
LOSS_AND_L0 = f"{FIGURES}/loss_and_l0.png"
FIRING_BY_POSITION = f"{FIGURES}/firing_by_position.png"
SAELENS_CHECKPOINTS = "checkpoints"
OUR_CHECKPOINTS = "resume"
"""Folder of the checkpoints to go on from; `SAELENS_CHECKPOINTS` has SAELens' own."""
TRAINED = "trained.json"
"""In `unfinished/`: what is known of an SAE that is saved, and has only to be scored."""
_EVAL_STATS = "eval_stats.json"
_SYNTHETIC_MODEL = (
    "synthetic_model_config.json",
    "synthetic_model.safetensors",
    "hierarchy.json",
)
_CHECKPOINT_FILES = (
    "trainer_state.pt",
    "activation_scaler.json",
    "activation_whitening.safetensors",
    "activations_store_state.safetensors",
)
_KEPT = f"{UNCALIBRATED}/{WEIGHTS}", f"{UNCALIBRATED}/{CONFIG}"
_SAE_FILES = (WEIGHTS, SPARSITY, RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG, CONFIG, *_KEPT)
_NAMED = (
    *(METRICS, METRICS_BY_FEATURE, LOSS_AND_L0, FIRING_BY_POSITION),
    *(*_SAE_FILES, RECIPE, ORIGIN, SUMMARY, FILES, _EVAL_STATS),
    *(f"synthetic_model/{name}" for name in _SYNTHETIC_MODEL),
)
"""Names that are a run's alone."""


# -- what they are called --------------------------------------------------------------------------


def default_path(names: Iterable[str], model_name: str, architecture: str, seed: int) -> Path:
    """Where a run goes that names no folder."""
    parts = ["+".join(names) or "plain", architecture, model_name, f"seed{seed}"]
    return Path("runs") / "_".join(map(file_name, parts))


def numbered(name: str, number: int) -> str:
    """The file `name` of the SAE with this number among those that train into one folder."""
    stem, dot, extension = name.partition(".")
    return name if number == 1 else f"{stem}-{number}{dot}{extension}"


def summary_of(number: int) -> str:
    """The file that sums up the training of the SAE with this number; the first one's has more."""
    return SUMMARY if number == 1 else numbered(TRAINING_SUMMARY, number)


def metrics_figure(group: str, number: int) -> str:
    """The figure of a group of metrics of the SAE with this number."""
    return f"{FIGURES}/{numbered('metrics', number)}/{own_file_name(group)}.png"


def events(number: int) -> str:
    """TensorBoard's file of the SAE with this number; it tells trainings apart by folders."""
    return f"{numbered('tensorboard', number)}/events.out.tfevents.0"


def metrics_files(folder: Path) -> Iterator[Path]:
    """The rows of all SAEs that train, or have trained, into a folder."""
    number = 1
    while (path := folder / numbered(METRICS, number)).is_file():
        yield path
        number += 1


# -- which of them are a run's own -----------------------------------------------------------------


def own_files(folder: Path) -> list[str]:
    """The files in a folder that runs have written, by their paths in it."""
    listed = _listed(folder)
    names = [*_NAMED, *(_told(folder) if listed is None else listed)]
    return [name for name in dict.fromkeys(names) if _is_there(folder / name)]


def own_records(folder: Path) -> list[str]:
    """Those of them that say how SAEs have trained."""
    kinds = (Path(METRICS).stem, Path(TRAINING_SUMMARY).stem, SUMMARY, f"{FIGURES}/", "tensorboard")
    return [name for name in own_files(folder) if name.startswith(kinds)]


def list_own(folder: Path, but: Collection[str] = ()) -> list[str]:
    """Write the list of what a run has written into a folder, and return it.

    Args:
        folder: where it is.
        but: what is left out.
    """
    (folder / FILES).unlink(missing_ok=True)
    names = sorted({*own_files(folder), FILES}.difference(but))
    write(folder / FILES, json.dumps({"files": names}, indent=1) + "\n")
    return names


def is_inside(name: Any) -> bool:
    """Whether it is a path that cannot lead out of a folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _listed(folder: Path) -> list[str] | None:
    """What a list says; None where there is none that can be read."""
    try:
        names = read_json(folder / FILES)["files"]
        return [str(name) for name in names if is_inside(name)]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _told(folder: Path) -> Iterator[str]:
    """The names that follow from what is in a folder; what tells others comes before them."""
    for number, path in enumerate(metrics_files(folder), 1):
        for name in (METRICS, METRICS_BY_FEATURE, TRAINING_SUMMARY, LOSS_AND_L0):
            yield numbered(name, number)
        yield numbered(FIRING_BY_POSITION, number)
        yield events(number)
        yield from (metrics_figure(group, number) for group in _groups(path))
    yield from _code(folder)
    for place in sorted(folder.glob(f"{SAELENS_CHECKPOINTS}/*")):
        if re.fullmatch(r"(final_)?\d+", place.name):  # as SAELens calls them
            names = (*_SAE_FILES, *_CHECKPOINT_FILES)
            yield from (f"{SAELENS_CHECKPOINTS}/{place.name}/{name}" for name in names)


def _groups(metrics: Path) -> Iterable[str]:
    from sae_plugins.runs.figures import groups  # imports numpy

    try:
        return groups(read_rows(metrics))
    except (OSError, ValueError, AttributeError):
        return []


def _code(folder: Path) -> Iterator[str]:
    """The copies of the files that a recipe names as plugins, and of what these import there."""
    try:
        names = yaml_files.parse((folder / RECIPE).read_text("utf-8")).get("plugin", [])
        for name in filter(plugin_files.is_copy, names):
            file = folder / plugin_files.parted(name)[0]
            yield from (own.file.relative_to(folder).as_posix() for own in read_modules(file))
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        return


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


# -- what is removed -------------------------------------------------------------------------------


def working_files(folder: Path) -> list[str]:
    """What is in `unfinished/` only, besides the checkpoints to go on from.

    With it is what a process that is killed leaves of files that it was writing; safetensors names
    its own.
    """
    inside = ("", f"{SAELENS_CHECKPOINTS}/*/")
    patterns = [f"{place}*.partial/{name}" for place in inside for name in (WEIGHTS, CONFIG)]
    places = (
        "",
        "*.partial/",
        "synthetic_model/",
        *(f"{inside[1]}{p}" for p in ("", "*.partial/")),
    )
    patterns += [f"{place}.tmp??????" for place in places]
    names = [TRAINED, TRAINING_SUMMARY]
    names += [f"{name}.partial" for name in (*_NAMED, *names, *_told(folder))]
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    found |= {folder / name for name in names}
    return [path.relative_to(folder).as_posix() for path in sorted(found) if _is_there(path)]


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove such files of a folder, and the folders inside that are empty then.

    The last ones go first: what tells that others are a run's own comes before them.
    """
    for name in reversed([*names]):
        path = folder / name
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == folder or not remove_if_empty(parent):
                break


def remove_run(folder: Path) -> None:
    """Remove all that a run has written into a folder, and the folder unless more is in it."""
    remove(folder, [*own_files(folder), *working_files(folder)])
    remove_checkpoints(folder)
    remove_empty_folders(folder)


def remove_half_saved(folder: Path) -> None:
    """Remove what there is of an SAE that is not whole."""
    partial = (name for name in working_files(folder) if name not in (TRAINED, TRAINING_SUMMARY))
    remove(folder, [*_SAE_FILES, _EVAL_STATS, *partial])
    remove_if_empty(folder / OUR_CHECKPOINTS)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints to go on from."""
    inside = folder / OUR_CHECKPOINTS
    for file in (*checkpoints_in(inside), *partial_files(inside)):
        remove_checkpoint(file)


# -- what is in it ---------------------------------------------------------------------------------


def is_saved(folder: Path) -> bool:
    """Whether a whole SAE is in the folder: `cfg.json` is written after the weights."""
    try:
        json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / WEIGHTS).is_file()


def has_records(folder: Path) -> bool:
    """Whether there is an SAE, a row of metrics, or one of SAELens' checkpoints."""
    checkpoints = (n for n in own_files(folder) if n.startswith(f"{SAELENS_CHECKPOINTS}/"))
    records = (*metrics_files(folder), *(folder / name for name in checkpoints))
    return is_saved(folder) or any(file.stat().st_size for file in records)
