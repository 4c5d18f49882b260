"""`sae-plugins train`: from flags to a run's folder with a trained SAE in it."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sae_plugins.base.errors import Paused, Problems, SaePluginsError, begun
from sae_plugins.base.ranks import ranks
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.progress import TrainProgress
from sae_plugins.entrypoints.train_again import as_resumed, state_of
from sae_plugins.entrypoints.train_checkpoints import check_checkpoints, checkpoints_of
from sae_plugins.entrypoints.train_disk import bytes_of_checkpoint, bytes_on_disk, most_checkpoints
from sae_plugins.entrypoints.train_dry_run import dry_run
from sae_plugins.entrypoints.train_help import ABOUT, EXAMPLES, GROUPS, NOTES
from sae_plugins.entrypoints.train_output import print_end, print_plan
from sae_plugins.entrypoints.train_ranks import (
    check_alike,
    check_shared,
    for_saelens,
    settle_shards,
    several,
)
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import DASHBOARDS, all_flags
from sae_plugins.settings.suggestions import unknown_flag

if TYPE_CHECKING:
    from sae_plugins.framework.profile import Profile
    from sae_plugins.framework.run import Run
    from sae_plugins.resume.checkpoints import Checkpoints
    from sae_plugins.runs.run_folder import RunFolder
    from sae_plugins.runs.setup import Setup
    from sae_plugins.settings.settings import Settings

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""The errors of a disk that takes nothing more; others come from data that cannot be read."""
_OF_TORCH_SAVE = "inline_container"
"""Part of what `torch.save` says when its file takes nothing more."""


def _run(line: Line, problems: Problems) -> int:
    with several(line, problems):
        settings, folder = _opened(line, problems)
        try:
            if line.given.get("dry_run"):
                return dry_run(settings, folder)
            if ranks().first(settings is not None) and settings is not None:
                _train(settings, folder)
            if ranks().writes:
                print_end(folder.path, settings)
        finally:
            folder.release()
    return 0


COMMAND = Command(
    "train",
    "train an SAE",
    _run,
    about=ABOUT,
    examples=EXAMPLES,
    notes=NOTES,
    flags=all_flags,
    groups=GROUPS,
    owners="plugin",
)


def _opened(line: Line, problems: Problems) -> tuple[Settings | None, RunFolder]:
    """The settings and the folder, locked, of a run that starts or goes on; None if it has ended.

    Raises:
        SaePluginsError: what is wrong; on several ranks, on all of them.
    """
    if line.given.get("resume"):
        with ranks().together():
            return _resumed(line, problems)
    state = None
    with ranks().together():
        settings, path = _settled(line, problems)
        if ranks().writes:
            state = state_of(settings, path)
    state = ranks().first(state)
    with ranks().together():
        if state == "ended":
            print(f"the run in {path} has ended; this command has nothing to go on with")
            return None, _folder(line, path)
        if state == "unfinished":
            line.given, line.options = as_resumed(line, path), {}
            return _resumed(line, problems)
        return _new(line, settings, path)


def _settled(line: Line, problems: Problems) -> tuple[Settings, Path]:
    """The settings and the folder that a command line says."""
    from sae_plugins.runs.folder import default_path
    from sae_plugins.settings.settle import settle  # imports pydantic and the plugins

    flags = {**line.given, **line.options}
    if flags.get("accept_changes") and not flags.get("go_on"):
        problems.add(
            "--accept_changes is for --resume, to go on with what has changed; leave it out"
        )
    if flags.get("go_on") and flags.get("overwrite"):
        problems.add("--go_on keeps what an earlier run has left: leave --overwrite out")
    settings = settle(flags, unknown=line.unknown, problems=problems, is_to_start=True)
    default = default_path(
        settings.names, settings.model_name, settings.architecture, settings.get("seed")
    )
    return settings, Path(settings.get("output_path") or default).expanduser()


def _new(line: Line, settings: Settings, path: Path) -> tuple[Settings, RunFolder]:
    """The settings and the folder, locked, of a run that starts."""
    settle_shards(settings, ranks())
    folder = _folder(line, path)
    check_checkpoints(settings, folder)
    folder.check(bool(settings.get("overwrite")))
    return settings, folder


def _resumed(line: Line, problems: Problems) -> tuple[Settings | None, RunFolder]:
    """The settings and the folder, locked, of a run that goes on; None if it has just ended."""
    from sae_plugins.settings.run_yaml import of_resumed
    from sae_plugins.settings.settle import settle

    given = {**line.given, **line.options}
    for name in ("recipe", "output_path", "overwrite", "go_on"):
        if name in given:
            problems.add(f"--{name} cannot be combined with --resume, which goes on as it was")
    problems.add(*(unknown_flag(name, all_flags()) for name in line.unknown))
    problems.stop()
    folder = _folder(line, given["resume"])
    with ranks().together():
        is_open = folder.reopen()
    if not ranks().first(is_open):
        return None, folder
    try:
        settings = settle(of_resumed(given, folder.path), is_to_start=True)
        settle_shards(settings, ranks())
        return settings, folder
    except BaseException:
        folder.release()
        raise


def _folder(line: Line, path: str | Path) -> RunFolder:
    """The folder, which stays as it is in a dry run."""
    from sae_plugins.runs.follower import folder_of_rank
    from sae_plugins.runs.untouched import UntouchedFolder

    kind = UntouchedFolder if line.given.get("dry_run") else folder_of_rank
    return kind(Path(path).expanduser())


def _train(settings: Settings, folder: RunFolder) -> None:
    """Train, score the SAE that was saved, and only then move all files to their places."""
    from sae_plugins.framework.profile import Profile
    from sae_plugins.resume.origin import Origin
    from sae_plugins.runs.folder import TRAINED
    from sae_plugins.runs.load import load_setup
    from sae_plugins.runs.logs import conclude

    started = time.perf_counter()
    profile = Profile() if settings.get("profile") else None
    resumed = bool(settings.get("resume"))
    try:
        earlier = ranks().first(folder.trained if resumed else None)
        if earlier is not None and not ranks().writes:
            return
        with ranks().together() if earlier is None else nullcontext():
            checkpoints = checkpoints_of(settings, folder) if resumed and earlier is None else None
            print(f"loading {settings.model_name} ...", flush=True)
            with _part(profile, "loading"):
                setup = load_setup(for_saelens(settings, ranks()))
        if earlier is None:
            _fit(settings, setup, folder, checkpoints, started, profile)
            if not ranks().writes:
                return
        else:
            place, accepts = folder.unfinished / TRAINED, bool(settings.get("accept_changes"))
            Origin(earlier, place, accepts).add(setup.made_from())
        before = earlier.get("seconds", 0.0) if earlier else 0.0
        with begun():
            _score(setup, folder, before + time.perf_counter() - started, profile)
            conclude(
                settings.get("log_to") or (), folder.unfinished, settings.get("trackio_project")
            )
            left = folder.finish()
    except BaseException as error:
        kept = folder.abandon()
        if kept and not (resumed and isinstance(error, SaePluginsError) and error.exit_code == 2):
            print(kept)
        raise
    if left:
        print(f"left in {folder.path}, since they are no run's: {', '.join(left)}")


def _fit(
    settings: Settings,
    setup: Setup,
    folder: RunFolder,
    checkpoints: Checkpoints | None,
    started: float,
    profile: Profile | None,
) -> None:
    """Train from the start, or from `checkpoints`, until the SAE is saved in `unfinished/`."""
    from sae_plugins.base.saelens import no_bars
    from sae_plugins.resume.origin import ACCEPTED
    from sae_plugins.settings.run_yaml import recipe_of

    recipe = recipe_of(settings, setup)
    check_alike(settings, setup, recipe, ranks())
    with ranks().together():
        each = bytes_of_checkpoint(settings, setup)
        folder.check_space(bytes_on_disk(settings, setup), most_checkpoints(settings) * each)
        cached = setup.plan_cache()
        with _disk_errors(folder):
            if checkpoints is None:
                folder.start(recipe, settings.plan.files)
    with ranks().together():
        check_shared(folder.checkpoints.parent, ranks())
        checkpoints = checkpoints or checkpoints_of(settings, folder)
    ranks().same("the checkpoint to go on from", {"its step": checkpoints.step})
    checkpoints.origin.facts.update(setup.made_from())
    print_plan(settings, setup, folder, checkpoints.step, each, cached)
    print(flush=True)
    with _trainable(settings, setup, folder, checkpoints, profile):
        run = setup.prepare(folder.unfinished)
        with _disk_errors(folder), _wandb_errors(), no_bars():
            found = run()
            # here, where signals wait
            if checkpoints.step is not None:  # `cfg.json` has hashes of the code that went on
                accepted = checkpoints.accepted
                told = recipe | {ACCEPTED: accepted} if accepted else None
                folder.describe(settings.plan.files, told)
            known = {"found": found, "made_from": checkpoints.origin.facts}
            folder.note_trained(known | {"seconds": time.perf_counter() - started})
    checkpoints.pause_in_the_end()


@contextmanager
def _trainable(
    settings: Settings,
    setup: Setup,
    folder: RunFolder,
    checkpoints: Checkpoints,
    profile: Profile | None,
) -> Iterator[None]:
    """SAELens trains inside with the plugins, the recorder, a bar and the log that are wanted."""
    from sae_plugins.base.saelens import interruption
    from sae_plugins.framework.attach import plugins
    from sae_plugins.runs.recorder import Recorder

    progress = TrainProgress(settings.batches, done=checkpoints.step or 0)

    class Shown(Recorder):
        def show(self, run: Run) -> None:
            progress.trained(run.step, run.samples, self.last)

        def draw_figures(self, run: Run) -> None:
            with _part(profile, "figures"):
                super().draw_figures(run)

    shown = DASHBOARDS if ranks().writes else ()
    own = {name: settings.get(name) for name in shown if settings.get(name)}
    plan = settings.plan.observed_by(Shown, output_path=str(folder.unfinished), **own)
    try:
        with (
            closing(progress),
            _wandb(settings, checkpoints),
            plugins(
                plan,
                seed=settings.get("seed"),
                checkpoints=checkpoints,
                profile=profile,
                text=setup,
                data_shards=settings.data_shards,
            ),
        ):
            yield
    except interruption() as error:
        raise (Paused if checkpoints.paused else KeyboardInterrupt) from error


def _part(profile: Profile | None, name: str) -> AbstractContextManager[None]:
    """The time inside counts for a part, if anybody measures it."""
    return nullcontext() if profile is None else profile.part((name, ""), whole=True)


def _wandb(settings: Settings, checkpoints: Checkpoints) -> AbstractContextManager[None]:
    from sae_plugins.runs.weights_and_biases import one_log

    if not (settings.get("log_to_wandb") and ranks().writes):
        return nullcontext()
    resumed = checkpoints.step is not None
    return one_log(checkpoints.notes, settings.get("wandb_id"), resumed)


@contextmanager
def _disk_errors(folder: RunFolder, state: str = "") -> Iterator[None]:
    """Training has begun: name a file that cannot be written, and the state of the folder."""
    from safetensors import SafetensorError

    with begun():
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and _OF_TORCH_SAVE not in str(error):
                raise
            if isinstance(error, OSError) and error.errno not in _OF_WRITING:
                raise SaePluginsError(
                    f"training stopped: {type(error).__name__}: {error}"
                ) from error
            file = getattr(error, "filename", None) or folder.being_saved()
            state = state or (
                f"Nothing of an earlier run in {folder.path} was changed; make room, or choose "
                "another --output_path, and train again"
            )
            raise SaePluginsError(
                f"{file} could not be written: {_reason(error)}. {state}"
            ) from error


@contextmanager
def _wandb_errors() -> Iterator[None]:
    """Say that it is Weights & Biases that fails, and how to train without its servers."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "wandb":
            raise
        raise SaePluginsError(
            f"Weights & Biases failed: {error}. WANDB_MODE=offline logs into a local folder"
        ) from error


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    if _OF_TORCH_SAVE in text:
        return "the disk may be full"  # torch does not say why
    return "no space left on the disk" if "space left" in text.lower() else text


def _score(setup: Setup, folder: RunFolder, seconds: float, profile: Profile | None) -> None:
    """Write `summary.json`: what the SAE that was saved does on held-out data, and all else."""
    from sae_plugins.runs.setup import quiet
    from sae_plugins.runs.summary import saved_saes, write_summary

    with quiet():
        saes = saved_saes(folder.unfinished, setup.sae_config.device)
    with _part(profile, "held-out scoring"):
        heldout = setup.heldout(saes)
    found = (folder.trained or {}).get("found", {})
    with _disk_errors(folder, f"The trained SAE is in {folder.unfinished}"):
        measured = None if profile is None else profile.as_json()
        write_summary(folder.unfinished, heldout, found, seconds, measured)
