"""Where `study run` has a study's tasks done: `--on`, and the options of what it names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems, SaePluginsError, did_you_mean
from sae_plugins.base.extras import imported
from sae_plugins.base.ranks import ranks
from sae_plugins.settings.command_line import Bare, Line
from sae_plugins.settings.flags import Flag
from sae_plugins.settings.suggestions import unknown_flag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sae_plugins.study.engines import Engine

_PACKAGES = {"slurm": "submitit", "ray": "ray"}
"""What each of them needs, which `pip install 'sae-plugins[NAME]'` brings."""
ON = Flag(
    "on",
    "str",
    "where the tasks run: local (processes of this machine), slurm, ray, or MODULE:FUNCTION, a "
    "function of an installed module that returns an Executor of concurrent.futures; "
    "--slurm.KEY VALUE is for sbatch, such as --slurm.time 4:00:00 --slurm.partition gpu, and "
    "--ray.KEY VALUE for ray, such as --ray.num_gpus 1",
    "local",
)


def engine_of(line: Line, flags: Mapping[str, Flag], problems: Problems) -> Engine | None:
    """The engine that a line names; None if something is wrong with it."""
    from sae_plugins.study.engines import Engine

    name = str(line.given.get("on", "local"))
    problems.add(*(unknown_flag(each, flags, command="study run") for each in line.unknown))
    options: dict[str, Any] = {}
    for option, text in line.options.items():
        owner, _, key = option.partition(".")
        if owner not in _PACKAGES:
            problems.add(unknown_flag(option, flags, command="study run"))
        elif owner != name:
            problems.add(f"--{option}: it needs --on {owner}")
        else:
            options[key.replace("-", "_")] = _value(text, owner)
    with problems:
        _check(name)
        return Engine(name, options)
    return None


def _value(text: str, owner: str) -> Any:
    """True where nothing is said, and a number for Ray alone: an account may be called 007."""
    if isinstance(text, Bare):
        return True
    for kind in (int, float) if owner == "ray" else ():
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check(name: str) -> None:
    if name == "local":
        return
    if ranks().size > 1:
        raise SaePluginsError(
            f"--on {name}: {ranks().size} ranks share the study already; leave it, or torchrun, out"
        )
    if name in _PACKAGES:
        imported(_PACKAGES[name], name, f"--on {name}")
    elif not all(name.partition(":")):
        raise SaePluginsError(
            f"--on {name}: give local, slurm, ray, or MODULE:FUNCTION; "
            f"{did_you_mean(name, ('local', *_PACKAGES))}"
        )
