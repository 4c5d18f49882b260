"""The same `sae-plugins train` once more: `--go_on`, and what torchrun and Slurm start again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.ranks import ranks
from sae_plugins.settings.command_line import Line

if TYPE_CHECKING:
    from sae_plugins.settings.settings import Settings


def state_of(settings: Settings, path: Path) -> Literal["unfinished", "ended"] | None:
    """How far the run of a command line is, if an earlier call of the same has begun it.

    Args:
        settings: of the command line.
        path: the run's folder.

    Raises:
        SaePluginsError: the folder has another run, and what differs.
    """
    from sae_plugins.runs.again import earlier_run
    from sae_plugins.settings.run_yaml import differences

    overwrites = bool(settings.get("overwrite"))
    earlier = earlier_run(path) if settings.get("go_on") or ranks().restarts else None
    if earlier is None or (earlier.state == "ended" and overwrites):
        return None
    found = differences(settings, earlier.recipe)
    if not found:
        return earlier.state
    if overwrites:  # the command was stopped before it could replace that
        return None
    raise SaePluginsError(
        f"--output_path {path} has another run, with which this command cannot go on; give its "
        "settings, or choose another folder:\n  " + "\n  ".join(found)
    )


def as_resumed(line: Line, path: Path) -> dict[str, Any]:
    """The flags of a command line that goes on with a run, without those that are the run's."""
    from sae_plugins.settings.run_yaml import not_of_the_run

    given = not_of_the_run({**line.given, **line.options})
    return {name: given[name] for name in given if name != "go_on"} | {"resume": str(path)}
