"""The folder of a run: which files it has, how they get there, and what is never touched.

A run writes into `unfinished/` inside its folder, and moves everything to its place when the SAE
is saved: what an earlier run left stays whole until then, and a full disk costs nothing of it.
`unfinished/` stays behind only when a run fails, for its `metrics.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sae_plugins.plugin import PluginError

WEIGHTS = "sae_weights.safetensors"
RUNNER_CONFIG = "runner_cfg.json"
SYNTHETIC_RUNNER_CONFIG = "runner_config.json"
RECIPE = "run.yaml"
SUMMARY = "summary.json"
TRAINING_SUMMARY = "training_summary.json"
UNFINISHED = "unfinished"
FIGURES = "figures"
CHECKPOINTS = "checkpoints"
_CHECKPOINT_FILES = (
    "trainer_state.pt",
    "activation_scaler.json",
    "activations_store_state.safetensors",
)
_SAE_FILES = (WEIGHTS, "cfg.json", "sparsity.safetensors", RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG)
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
    *(f"{CHECKPOINTS}/*/{name}" for name in (*_SAE_FILES, *_CHECKPOINT_FILES)),
)
"""Everything that a run writes, relative to its folder or to `unfinished/` in it."""
_IN_PLACE = tuple(pattern for pattern in _PATTERNS if pattern != "*.partial")

VERSIONS = ("sae-plugins", "sae-lens", "torch", "transformer-lens", "numpy", "python")
"""Distributions whose versions `run.yaml` names; the plugins' own come on top."""


def versions(names: Iterable[str] = VERSIONS) -> dict[str, str]:
    """The installed versions of distributions, and of python."""
    found: dict[str, str] = {}
    for name in names:
        if name == "python":
            found[name] = ".".join(str(part) for part in sys.version_info[:3])
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that is taken or cannot be written to; make it if it does not exist.

        Raises:
            PluginError: what is wrong, and what to do about it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise PluginError(f"--output_path {self.path} is a file; name a folder")
        try:
            taken = self._taken() if self.path.is_dir() else []
        except OSError as error:
            raise PluginError(f"--output_path {self.path} cannot be read: {_why(error)}") from error
        if taken and not overwrite:
            raise PluginError(
                f"--output_path {self.path} is not empty (it holds {', '.join(taken[:3])}"
                f"{', ...' if len(taken) > 3 else ''}): choose another folder, or --overwrite to "
                "replace the run in it (other files stay)"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise PluginError(
                f"--output_path {self.path} cannot be written to: {_why(error)}"
            ) from error

    def _taken(self) -> list[str]:
        """Names in the folder, less those of a run that failed without leaving a checkpoint."""
        names = sorted(entry.name for entry in self.path.iterdir())
        if UNFINISHED in names and not (self.unfinished / CHECKPOINTS).exists():
            names.remove(UNFINISHED)
        return names

    def check_space(self, needed: int) -> None:
        """Refuse a disk that has no room for `needed` bytes; a `PluginError` names both numbers."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise PluginError(
                f"--output_path {self.path}: the SAE needs {_size(needed)} of disk, and "
                f"{_size(free)} are free: make room, or choose a folder on another disk"
            )

    def start(self, recipe: Mapping[str, Any]) -> Path:
        """Make an empty `unfinished/` with `run.yaml` in it, and return it."""
        _remove(self.unfinished, _PATTERNS)
        self.unfinished.mkdir(exist_ok=True)
        write(self.unfinished / RECIPE, _yaml(recipe))
        return self.unfinished

    def finish(self) -> None:
        """Move everything out of `unfinished/`, in place of an earlier run's files."""
        for config in (RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG):
            if (self.unfinished / config).exists():
                self._correct_paths(self.unfinished / config)
        files = [file for file in sorted(self.unfinished.rglob("*")) if not file.is_dir()]
        places = [self.path / file.relative_to(self.unfinished) for file in files]
        for file, place in zip(files, places, strict=True):
            place.parent.mkdir(exist_ok=True, parents=True)
            os.replace(file, place)
        _remove(self.path, _IN_PLACE, but=places)
        shutil.rmtree(self.unfinished)  # its folders; the files are gone

    def _correct_paths(self, config: Path) -> None:
        """SAELens notes where it wrote; the files are about to move."""
        contents = json.loads(config.read_text("utf-8"))
        contents["output_path"] = str(self.path)
        if str(contents.get("checkpoint_path")) == str(self.unfinished / CHECKPOINTS):
            contents["checkpoint_path"] = str(self.path / CHECKPOINTS)
        write(config, json.dumps(contents, indent=1))

    def abandon(self) -> str | None:
        """Remove what a failed run saved only in part; say where the rest is, if anything is."""
        _remove(self.unfinished, (*_SAE_FILES, "eval_stats.json", "*.partial"))
        records = list(_matching(self.unfinished, ("metrics*.jsonl", f"{CHECKPOINTS}/*/*")))
        if not any(record.stat().st_size for record in records):
            _remove(self.unfinished, _PATTERNS)
        if not self.unfinished.exists():
            _remove_if_empty(self.path)
            return None
        return f"what the run recorded until then is in {self.unfinished}"

    def being_saved(self) -> Path:
        """The tensors that SAELens was saving: the weights come before `cfg.json`."""
        weights_are_saved = (self.unfinished / "cfg.json").exists()
        return self.unfinished / ("sparsity.safetensors" if weights_are_saved else WEIGHTS)


def write(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _yaml(recipe: Mapping[str, Any]) -> str:
    import yaml

    heading = "# Reproduces this run: sae-plugins train --recipe THIS_FILE --output_path ANOTHER\n"
    return heading + yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


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


def _size(count: int) -> str:
    units = ["bytes", "KB", "MB", "GB", "TB"]
    size, unit = float(count), 0
    while size >= 1000 and unit < len(units) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {units[unit]}" if unit == 0 else f"{size:.1f} {units[unit]}"
