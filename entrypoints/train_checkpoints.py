"""The checkpoints of a run of `sae-plugins train`: those to go on from, and SAELens' own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sae_plugins.base.errors import SaePluginsError, StateError

if TYPE_CHECKING:
    from sae_plugins.resume.checkpoints import Checkpoints
    from sae_plugins.runs.run_folder import RunFolder
    from sae_plugins.settings.settings import Settings


def check_checkpoints(settings: Settings, folder: RunFolder) -> None:
    """Refuse to write over another run's checkpoints, or to move those to resume from."""
    resumed = settings.get("resume_from_checkpoint")
    if resumed and folder.unfinished.resolve() in Path(resumed).resolve().parents:
        raise SaePluginsError(
            f"--resume_from_checkpoint {resumed} is in the folder that this run would write into: "
            "choose another --output_path"
        )
    path = settings.get("checkpoint_path")
    if not path or resumed or settings.get("overwrite") or not Path(path).exists():
        return
    if not Path(path).is_dir() or any(Path(path).iterdir()):
        raise SaePluginsError(
            f"--checkpoint_path {path} is not empty: choose another folder, or --overwrite to "
            "replace the checkpoints in it"
        )


def checkpoints_of(
    settings: Settings, folder: RunFolder, scratch: Path | None = None
) -> Checkpoints:
    """Where the run is saved to go on from, and, of one that is resumed, where it is.

    Args:
        settings: the run's.
        folder: its folder.
        scratch: another, for a dry run, of which nothing is saved.
    """
    from sae_plugins.resume.checkpoints import Checkpoints
    from sae_plugins.runs.folder import OUR_CHECKPOINTS, RECIPE
    from sae_plugins.runs.probe import UnwrittenCheckpoints
    from sae_plugins.settings.settings import CACHING

    resume = bool(settings.get("resume"))
    place = folder.checkpoints if scratch is None or resume else scratch / OUR_CHECKPOINTS
    kind = Checkpoints if scratch is None else UnwrittenCheckpoints
    try:
        checkpoints = kind(
            place,
            every=settings.get("checkpoint_every"),
            keep=settings.get("keep_checkpoints"),
            rows=settings.get("resume_buffer") == "exact",
            resume=resume,
            accept_changes=bool(settings.get("accept_changes")),
            check_ranks=settings.get("check_ranks"),
            max_time=settings.get("max_time") if scratch is None else None,
        )
    except StateError as error:
        raise StateError(
            f"{error}: sae-plugins train --recipe {folder.unfinished / RECIPE} "
            f"--output_path {folder.path} --overwrite"
        ) from error
    # not in run.yaml, since another run must not write there
    own = checkpoints.notes.setdefault("checkpoint_path", settings.get("checkpoint_path"))
    if own is not None:
        settings.values["checkpoint_path"] = own
    for name in CACHING:  # which a run that goes on uses, too, if nothing else is said
        if name in settings.values:
            checkpoints.notes[name] = settings.values[name]
        elif name in checkpoints.notes:
            settings.values[name] = checkpoints.notes[name]
    return checkpoints
