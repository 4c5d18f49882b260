"""The folder of a run while it is used, from the first check to the last file.

A run writes into `unfinished/` inside its folder, and moves everything to its place when the SAE
is saved and scored: what an earlier run left stays whole until then, and a full disk costs nothing
of it. `unfinished/` stays behind only when a run fails or is interrupted: with its checkpoints,
from which it can go on, and its `metrics.jsonl`. A new run into the folder renames it to
`unfinished-1`. A run locks its folder, so that two never share one, and removes only files that
runs have written.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sae_plugins.base.errors import PluginError, reason
from sae_plugins.base.files import (
    lock,
    next_free,
    remove_empty_folders,
    remove_if_empty,
    size,
    write,
)
from sae_plugins.base.nearby import not_there
from sae_plugins.base.shown_paths import from_here
from sae_plugins.resume.files import files as checkpoints_in
from sae_plugins.resume.files import shards_of
from sae_plugins.resume.signals import deferred
from sae_plugins.runs import journal, recipe_file
from sae_plugins.runs.folder import (
    CONFIG,
    OUR_CHECKPOINTS,
    RECIPE,
    RUNNER_CONFIG,
    SAELENS_CHECKPOINTS,
    SYNTHETIC_RUNNER_CONFIG,
    TRAINED,
    UNFINISHED,
    WEIGHTS,
    has_records,
    is_saved,
    list_own,
    own_files,
    remove,
    remove_checkpoints,
    remove_half_saved,
    remove_run,
    working_files,
)

_MOVING = "moving the run's files to their places"


class RunFolder:
    """One run's folder, from the first check to the last file."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing happens yet."""
        self.path = path
        self.unfinished = path / UNFINISHED
        self._lock = ExitStack()
        self._started = self._ended = False

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints to go on from lie."""
        return self.unfinished / OUR_CHECKPOINTS

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that is taken or cannot be written to; make and lock it otherwise.

        Raises:
            PluginError: what is wrong, and what to do about it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise PluginError(f"--output_path {self.path} is a file; name a folder")
        self._make()
        self._take_lock()
        try:
            self._moved_rest()
            self._check_contents(overwrite)
            self._check_writable()
        except BaseException:
            self.release()
            raise

    def reopen(self) -> bool:
        """Lock the folder of an unfinished run, to go on with it.

        Returns:
            Whether there is anything to go on with. Otherwise the run had ended, and its files,
            which were being moved, are in their places now.

        Raises:
            PluginError: it holds none, or none that can go on.
        """
        if not self.path.is_dir():
            raise PluginError(f"--resume {self.path}{not_there(self.path)}")
        self._take_lock()
        try:
            if self._moved_rest():
                return False
            if not (self.unfinished / RECIPE).is_file():
                state = "is finished" if is_saved(self.path) else "holds no unfinished run"
                raise PluginError(f"--resume {self.path} {state}: there is nothing to go on with")
            if not self.can_go_on():
                recipe = self.unfinished / RECIPE
                again = f"{recipe}{recipe_file.named_again(recipe)}"
                raise PluginError(
                    f"--resume {self.path}: the run ended before its first checkpoint; start it "
                    f"again: sae-plugins train --recipe {again} --output_path {self.path}"
                    f"{' --overwrite' if self._taken() else ''}"
                )
        except BaseException:
            self.release()
            raise
        self._started = True
        if self.trained is None:
            self._remove_half_saved()
        return True

    @property
    def trained(self) -> dict[str, Any] | None:
        """What `note_trained` wrote, for a run that has only to be scored and moved."""
        try:
            trained: Any = json.loads((self.unfinished / TRAINED).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return trained if isinstance(trained, dict) else None

    def note_trained(self, known: Mapping[str, Any]) -> None:
        """The SAE is saved: from now on the run goes on by being scored, without training."""
        write(self.unfinished / TRAINED, json.dumps(known) + "\n")

    def _checkpoints(self) -> list[Path]:
        return checkpoints_in(self.unfinished / OUR_CHECKPOINTS)

    def can_go_on(self) -> bool:
        """Whether `unfinished/` has a run, and that something to go on from."""
        is_run = (self.unfinished / RECIPE).is_file()
        return is_run and (self.trained is not None or bool(self._checkpoints()))

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def _check_contents(self, overwrite: bool) -> None:
        try:
            taken = self._taken()
        except OSError as error:
            raise PluginError(
                f"--output_path {self.path} cannot be read: {reason(error)}"
            ) from error
        if taken and self.can_go_on() and not overwrite:
            raise PluginError(
                f"--output_path {self.path} holds an unfinished run: go on with it "
                f"({self._go_on}), choose another folder, or --overwrite to start again"
            )
        if taken and not overwrite:
            raise PluginError(
                f"--output_path {self.path} is not empty (it holds {', '.join(taken[:3])}"
                f"{', ...' if len(taken) > 3 else ''}): choose another folder, or --overwrite to "
                "replace the run in it (other files stay)"
            )

    def _check_writable(self) -> None:
        try:
            # a name that is in nobody's way, if this process is killed here
            probe = self.path / f"{UNFINISHED}-0"
            probe.mkdir(exist_ok=True)
            remove_if_empty(probe)
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: OSError) -> PluginError:
        return PluginError(f"--output_path {self.path} cannot be written to: {reason(error)}")

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
            or (checkpoints_in(entry / OUR_CHECKPOINTS) and (entry / RECIPE).is_file())
            or is_saved(entry)
        )

    def free(self) -> int:
        """Bytes of disk that a run may take."""
        here = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        found = shutil.disk_usage(here).free
        old = [file for path in self._checkpoints() for file in (path, *shards_of(path))]
        return found + sum(file.stat().st_size for file in old)  # which give way

    def check_space(self, sae: int, checkpoints: int) -> None:
        """Refuse a disk without room for so many bytes; a `PluginError` names all numbers."""
        free = self.free()
        if free < sae + checkpoints:
            raise PluginError(
                f"--output_path {self.path}: the SAE needs {size(sae)} of disk and the checkpoints "
                f"to go on from {size(checkpoints)}, and {size(free)} are free: make room, choose "
                "a folder on another disk, or lower --keep_checkpoints; --resume_buffer refill "
                "and --checkpoint_every 0 need less, and say in --help what that costs"
            )

    def start(self, recipe: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
        """Make an empty `unfinished/` with `run.yaml` and such files in it, and return it.

        An earlier one, which failed or `--overwrite` gave up, keeps its records and loses its
        checkpoints. One that was killed before its first is repeated by the same run, and goes.
        """
        same = recipe_file.is_of(self.unfinished / RECIPE, recipe, files)
        if not self.can_go_on() and (same or not has_records(self.unfinished)):
            remove_run(self.unfinished)
        remove_checkpoints(self.unfinished)
        remove_empty_folders(self.unfinished)
        if self.unfinished.exists():
            self.unfinished.rename(next_free(self.unfinished))
        self.unfinished.mkdir()
        self._started = True
        recipe_file.write_recipe(self.unfinished / RECIPE, recipe, files)
        return self.unfinished

    def describe(self, files: Mapping[str, bytes], recipe: Mapping[str, Any] | None = None) -> None:
        """Write such files, and `run.yaml`, in place of those that the run began with."""
        if recipe is None:
            recipe_file.write_copies(self.unfinished, files)
        else:
            recipe_file.write_recipe(self.unfinished / RECIPE, recipe, files)

    @property
    def _go_on(self) -> str:
        again = recipe_file.named_again(self.unfinished / RECIPE)
        return f"sae-plugins train --resume {self.path}{again}"

    def finish(self) -> list[str]:
        """Move everything out of `unfinished/`, in place of an earlier run's files.

        Returns:
            What stays there: files of others, whose places are taken or among the checkpoints.

        Raises:
            PluginError: that failed; no file that the run wrote is lost.
        """
        with deferred(_MOVING):
            try:
                moves = self._moves()
                journal.begin(self.unfinished, self.path, moves)
            except OSError as error:
                raise PluginError(
                    f"the trained SAE could not be moved to {self.path}, where nothing was "
                    f"changed: {error}"
                ) from error
            self._move(moves)
        left = self.unfinished.rglob("*")
        return sorted(str(path.relative_to(self.path)) for path in left if not path.is_dir())

    def _moved_rest(self) -> bool:
        """Move what is left to be moved of a run that has ended, if there is anything."""
        moves = journal.pending(self.path)
        if moves is None:
            return False
        with deferred(_MOVING):
            self._move(moves)
        return True

    def _move(self, moves: journal.Moves) -> None:
        """Do what the journal says, or the rest of it."""
        try:
            if (self.unfinished / CONFIG).exists():
                # until its own is there, new weights beside an old cfg.json would pass for an SAE
                (self.path / CONFIG).unlink(missing_ok=True)
            journal.carry_out(self.unfinished, self.path, moves)
            remove(self.unfinished, working_files(self.unfinished))
            remove_checkpoints(self.unfinished)
            remove_empty_folders(self.unfinished)
            journal.end(self.path)
            self._ended = True
        except OSError as error:
            raise PluginError(f"moving the trained SAE to {self.path} failed: {error}") from error

    def _moves(self) -> journal.Moves:
        """The files that move, `cfg.json` last; makes their folders, and checks what can be.

        What is not a run's own moves along, unless something is in its place.
        """
        for name in own_files(self.unfinished):
            if Path(name).name in (RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG):
                self._correct_paths(self.unfinished / name)
        stay = working_files(self.unfinished)
        own = {*list_own(self.unfinished, but=stay)}
        names = []
        for file in sorted(self.unfinished.rglob("*")):
            name = file.relative_to(self.unfinished).as_posix()
            place = self.path / name
            if file.is_dir() or name in stay or name.startswith(f"{OUR_CHECKPOINTS}/"):
                continue
            if place.is_dir() and name in own:
                raise IsADirectoryError(f"{place} is a folder")
            if name in own or not place.exists():
                place.parent.mkdir(exist_ok=True, parents=True)
                names.append(name)
        gone = [name for name in own_files(self.path) if name not in names]
        return journal.Moves(sorted(names, key=CONFIG.__eq__), gone)

    def _correct_paths(self, config: Path) -> None:
        """SAELens notes where it wrote; the files are about to move."""
        contents = json.loads(config.read_text("utf-8"))
        contents["output_path"] = from_here(self.path)
        if contents.get("checkpoint_path") == from_here(self.unfinished / SAELENS_CHECKPOINTS):
            contents["checkpoint_path"] = from_here(self.path / SAELENS_CHECKPOINTS)
        write(config, json.dumps(contents, indent=1))

    def abandon(self) -> str | None:
        """Remove what a failed run saved only in part; say where the rest is, if anything is."""
        if not self._started:
            remove_if_empty(self.path)
            return None
        if self._ended:
            return f"the trained SAE is in {self.path}"
        go_on = f"go on with it: {self._go_on}"
        if (self.path / journal.JOURNAL).exists():
            return f"the trained SAE is being moved to {self.path}; {go_on}"
        if self.trained is not None:
            return f"the trained SAE is in {self.unfinished}; {go_on}"
        if not is_saved(self.unfinished):
            self._remove_half_saved()
        if self.can_go_on():
            return go_on
        if not has_records(self.unfinished):
            remove_run(self.unfinished)
        if not self.unfinished.exists():
            remove_if_empty(self.path)
            return None
        # so that `start` tells it from a run that was killed
        recipe_file.note_early_end(self.unfinished / RECIPE)
        if is_saved(self.unfinished):
            return f"the trained SAE is in {self.unfinished}"
        return f"what the run recorded until then is in {self.unfinished}"

    def _remove_half_saved(self) -> None:
        remove_half_saved(self.unfinished)

    def being_saved(self) -> Path:
        """The tensors that were being saved: those of the newest file, else the weights."""
        files = [*self.unfinished.rglob("*.safetensors"), *self.unfinished.rglob("*.pt")]
        files = [file for file in files if file.parent != self.unfinished / OUR_CHECKPOINTS]
        newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
        return newest or self.unfinished / WEIGHTS
