"""The folder of a run: which files it has, how they get there, and what is never touched.

A run writes into `unfinished/` inside its folder, and moves everything to its place when the SAE
is saved: what an earlier run left stays whole until then, and a full disk costs nothing of it.
`unfinished/` stays behind only when a run fails or is interrupted: with its checkpoints, from which
it can go on, and its `metrics.jsonl`. A new run into the folder renames it to `unfinished-1`. A run
locks its folder, so that two never share one.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sae_plugins.base import yaml_files
from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import lock, size, write

WEIGHTS = "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "cfg.json"
RUNNER_CONFIG = "runner_cfg.json"
SYNTHETIC_RUNNER_CONFIG = "runner_config.json"
RECIPE = "run.yaml"
SUMMARY = "summary.json"
TRAINING_SUMMARY = "training_summary.json"
UNFINISHED = "unfinished"
FIGURES = "figures"
SAELENS_CHECKPOINTS = "checkpoints"
OUR_CHECKPOINTS = "resume"
"""Folder of the checkpoints to go on from; `SAELENS_CHECKPOINTS` has SAELens' own."""
_CHECKPOINT_FILES = (
    "trainer_state.pt",
    "activation_scaler.json",
    "activations_store_state.safetensors",
)
_SAE_FILES = (WEIGHTS, SPARSITY, RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG, CONFIG)
_FILES = (*_SAE_FILES, RECIPE, SUMMARY, "eval_stats.json")
_PATTERNS = (
    *_FILES,
    "metrics*.jsonl",
    "training_summary*.json",
    "*.partial",
    f"{FIGURES}/loss_and_l0*.png",
    f"{FIGURES}/firing_by_position*.png",
    "synthetic_model/*.json",
    "synthetic_model/synthetic_model.safetensors",
    *(f"{SAELENS_CHECKPOINTS}/*/{name}" for name in (*_SAE_FILES, *_CHECKPOINT_FILES)),
)
"""Everything that a run writes, relative to its folder or to `unfinished/` in it."""
_IN_PLACE = tuple(pattern for pattern in _PATTERNS if pattern != "*.partial")


def default_path(names: Iterable[str], model_name: str, architecture: str, seed: int) -> Path:
    """Where a run goes that names no folder."""
    parts = ["+".join(names) or "plain", architecture, model_name, f"seed{seed}"]
    return Path("runs") / "_".join(re.sub(r"[^\w.+-]+", "-", part).strip(".-") for part in parts)


class RunFolder:
    """One run's folder, from the first check to the last file."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing happens yet."""
        self.path = path
        self.unfinished = path / UNFINISHED
        self._lock = ExitStack()
        self._started = self._moving = False

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that is taken or cannot be written to; make and lock it otherwise.

        Raises:
            PluginError: what is wrong, and what to do about it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise PluginError(f"--output_path {self.path} is a file; name a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        self._take_lock()
        try:
            self._check_contents(overwrite)
        except PluginError:
            self.release()
            raise

    def reopen(self) -> None:
        """Lock the folder of an unfinished run, to go on with it.

        Raises:
            PluginError: it holds none, or none that can go on.
        """
        if not self.path.is_dir():
            raise PluginError(f"--resume {self.path}: there is no such folder")
        self._take_lock()
        try:
            if not (self.unfinished / RECIPE).is_file():
                state = "is finished" if _is_saved(self.path) else "holds no unfinished run"
                raise PluginError(f"--resume {self.path} {state}: there is nothing to go on with")
            if not self._checkpoints():
                raise PluginError(
                    f"--resume {self.path}: the run ended before its first checkpoint; start it "
                    f"anew: sae-plugins train --recipe {self.unfinished / RECIPE} "
                    f"--output_path {self.path}"
                )
        except PluginError:
            self.release()
            raise
        self._started = True

    def _checkpoints(self) -> list[Path]:
        """Those of a run that can go on; without `run.yaml`, it has ended."""
        if not (self.unfinished / RECIPE).is_file():
            return []
        return list(_matching(self.unfinished / OUR_CHECKPOINTS, ["*.safetensors"]))

    def _check_contents(self, overwrite: bool) -> None:
        try:
            taken = self._taken()
        except OSError as error:
            raise PluginError(f"--output_path {self.path} cannot be read: {_why(error)}") from error
        if taken and self._checkpoints() and not overwrite:
            raise PluginError(
                f"--output_path {self.path} holds an unfinished run: go on with it (sae-plugins "
                f"train --resume {self.path}), choose another folder, or --overwrite to start anew"
            )
        if taken and not overwrite:
            raise PluginError(
                f"--output_path {self.path} is not empty (it holds {', '.join(taken[:3])}"
                f"{', ...' if len(taken) > 3 else ''}): choose another folder, or --overwrite to "
                "replace the run in it (other files stay)"
            )
        try:
            with tempfile.NamedTemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: OSError) -> PluginError:
        return PluginError(f"--output_path {self.path} cannot be written to: {_why(error)}")

    def _take_lock(self) -> None:
        busy = f"--output_path {self.path}: another run is writing into it; choose another folder"
        self._lock = lock(self.path, PluginError(busy))

    def release(self) -> None:
        """Let other runs have the folder."""
        self._lock.close()

    def _taken(self) -> list[str]:
        """Names in the folder, less those of failed runs that left no checkpoint and no SAE."""
        return sorted(
            entry.name
            for entry in self.path.iterdir()
            if not re.fullmatch(rf"{UNFINISHED}(-\d+)?", entry.name)
            or (entry / SAELENS_CHECKPOINTS).exists()
            or (any(_matching(entry, [f"{OUR_CHECKPOINTS}/*"])) and (entry / RECIPE).is_file())
            or _is_saved(entry)
        )

    def check_space(self, sae: int, checkpoints: int) -> None:
        """Refuse a disk without room for so many bytes; a `PluginError` names all numbers."""
        free = shutil.disk_usage(self.path).free
        free += sum(file.stat().st_size for file in self._checkpoints())  # which give way
        if free < sae + checkpoints:
            raise PluginError(
                f"--output_path {self.path}: the SAE needs {size(sae)} of disk and the checkpoints "
                f"to go on from {size(checkpoints)}, and {size(free)} are free: make room, choose "
                "a folder on another disk, or lower --keep_checkpoints; --resume_buffer refill "
                "and --checkpoint_every 0 need less, and say in --help what that costs"
            )

    def start(self, recipe: Mapping[str, Any]) -> Path:
        """Make an empty `unfinished/` with `run.yaml` in it, and return it.

        An earlier one, which `--overwrite` gave up, keeps its records and loses its checkpoints.
        """
        shutil.rmtree(self.unfinished / OUR_CHECKPOINTS, ignore_errors=True)
        if not any(path.is_file() for path in self.unfinished.rglob("*")):
            shutil.rmtree(self.unfinished, ignore_errors=True)
        if self.unfinished.exists():
            names = (self.path / f"{UNFINISHED}-{number}" for number in itertools.count(1))
            self.unfinished.rename(next(name for name in names if not name.exists()))
        self.unfinished.mkdir()
        self._started = True
        write(self.unfinished / RECIPE, as_yaml(recipe))
        return self.unfinished

    def finish(self) -> None:
        """Move everything out of `unfinished/`, in place of an earlier run's files.

        Raises:
            PluginError: that failed; no file that the run wrote is lost.
        """
        try:
            places = self._places()
        except OSError as error:
            raise PluginError(
                f"the trained SAE could not be moved to {self.path}, where nothing was changed: "
                f"{error}"
            ) from error
        self._moving = True
        try:
            # until its own is there, new weights beside an old cfg.json would pass for an SAE
            (self.path / CONFIG).unlink(missing_ok=True)
            for file, place in places.items():
                os.replace(file, place)
            _remove(self.path, _IN_PLACE, but=places.values())
            # its folders, whose files are gone, and the checkpoints, from which nothing goes on
            shutil.rmtree(self.unfinished)
        except OSError as error:
            raise PluginError(f"moving the trained SAE to {self.path} failed: {error}") from error

    def _places(self) -> dict[Path, Path]:
        """Where each file goes; makes the folders, and checks what can be.

        `cfg.json` follows the SAE's other files, and says that it is whole. `run.yaml` is the last
        of all: with it, the run can go on.
        """
        for config in (RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG):
            if (self.unfinished / config).exists():
                self._correct_paths(self.unfinished / config)
        files = [file for file in sorted(self.unfinished.rglob("*")) if not file.is_dir()]
        files = [file for file in files if file.parent != self.unfinished / OUR_CHECKPOINTS]
        last = [self.unfinished / name for name in (*_SAE_FILES, RECIPE)]
        files.sort(key=lambda file: last.index(file) if file in last else -1)
        places = {file: self.path / file.relative_to(self.unfinished) for file in files}
        for place in places.values():
            place.parent.mkdir(exist_ok=True, parents=True)
            if place.is_dir():
                raise IsADirectoryError(f"{place} is a folder")
        return places

    def _correct_paths(self, config: Path) -> None:
        """SAELens notes where it wrote; the files are about to move."""
        contents = json.loads(config.read_text("utf-8"))
        contents["output_path"] = str(self.path)
        if str(contents.get("checkpoint_path")) == str(self.unfinished / SAELENS_CHECKPOINTS):
            contents["checkpoint_path"] = str(self.path / SAELENS_CHECKPOINTS)
        write(config, json.dumps(contents, indent=1))

    def abandon(self) -> str | None:
        """Remove what a failed run saved only in part; say where the rest is, if anything is."""
        if not self._started:
            _remove_if_empty(self.path)
            return None
        if self._moving:
            if not _is_saved(self.path) and self._checkpoints():
                return f"go on with it: sae-plugins train --resume {self.path}"
            rest = f", but for what is still in {self.unfinished}"
            return f"the trained SAE is in {self.path}{rest if self.unfinished.exists() else ''}"
        if _is_saved(self.unfinished):
            return f"the trained SAE is in {self.unfinished}"
        _remove(self.unfinished, (*_SAE_FILES, "eval_stats.json", "*.partial"))
        _remove_if_empty(self.unfinished / OUR_CHECKPOINTS)
        if self._checkpoints():
            return f"go on with it: sae-plugins train --resume {self.path}"
        records = list(_matching(self.unfinished, ("metrics*.jsonl", f"{SAELENS_CHECKPOINTS}/*/*")))
        if not any(record.stat().st_size for record in records):
            _remove(self.unfinished, _PATTERNS)
        if not self.unfinished.exists():
            _remove_if_empty(self.path)
            return None
        return f"what the run recorded until then is in {self.unfinished}"

    def being_saved(self) -> Path:
        """The tensors that were being saved: those of the newest file, else the weights."""
        files = [*self.unfinished.rglob("*.safetensors"), *self.unfinished.rglob("*.pt")]
        files = [file for file in files if file.parent != self.unfinished / OUR_CHECKPOINTS]
        newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
        return newest or self.unfinished / WEIGHTS


def _is_saved(folder: Path) -> bool:
    """Whether a whole SAE is in the folder: `cfg.json` is written after the weights."""
    try:
        json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / WEIGHTS).is_file()


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as the text of `run.yaml`."""
    heading = "# Reproduces this run: sae-plugins train --recipe THIS_FILE --output_path ANOTHER\n"
    return heading + yaml_files.dump(recipe)


def _matching(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if not path.is_dir())


def _remove(folder: Path, patterns: Iterable[str], but: Iterable[Path] = ()) -> None:
    """Remove what matches, and the folders inside, or itself, that are empty then."""
    keep = set(but)
    if not folder.is_dir():
        return
    for path in list(_matching(folder, patterns)):
        if path not in keep:
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == folder or not _remove_if_empty(parent):
                    break
    if folder.name == UNFINISHED:
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
