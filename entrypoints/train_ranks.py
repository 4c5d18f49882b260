"""What `sae-plugins train` does on several ranks: they agree, and rank 0 speaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Paused, Problems, SaePluginsError
from sae_plugins.base.patches import replaced
from sae_plugins.base.ranks import LIMIT, RankError, Ranks, join

if TYPE_CHECKING:
    from sae_plugins.runs.setup import SAELensSettings, Setup
    from sae_plugins.settings.command_line import Line
    from sae_plugins.settings.settings import Settings


_LONGEST = 1e6
"""Seconds; torch counts them in nanoseconds."""
_OF_RANK_0 = "rank 0 stopped: "
"""How another rank begins to say what has stopped rank 0."""


@contextmanager
def several(line: Line, problems: Problems) -> Iterator[Ranks]:
    """The ranks that were started, which meet here; what ends one inside ends all.

    Rank 0 alone is heard.
    """
    import sys

    limit = float(line.given.get("rank_timeout", LIMIT))
    if not 0 < limit < _LONGEST:
        problems.add(
            f"--rank_timeout {limit:g}: give seconds, more than 0 and less than {_LONGEST:g}"
        )
        limit = LIMIT
    together = join(limit)
    if together.size > 1 and line.given.get("dry_run"):
        problems.add("--dry_run says what a run needs in one process: leave torchrun out")
    with together.ending(), open(os.devnull, "w") as nowhere:
        silent = {} if together.writes else {"stdout": nowhere, "stderr": nowhere}
        with replaced(sys, **silent) if silent else nullcontext(), _said_once(together):
            yield together


@contextmanager
def _said_once(together: Ranks) -> Iterator[None]:
    """What has stopped one rank ends another one inside: that is a pause, too, if it was one.

    Rank 0 says itself what has stopped it.
    """
    try:
        yield
    except RankError as error:
        if error.exit_code == Paused.exit_code:
            own = Paused if together.writes else together.only_first(code=Paused.exit_code)
            raise own from error
        if not together.writes:
            error.args = tuple(text for text in error.args if not text.startswith(_OF_RANK_0))
        raise


def settle_shards(settings: Settings, together: Ranks) -> None:
    """Set the data shards of a run on several ranks, and refuse what cannot be divided.

    Raises:
        SaePluginsError: the shards, a batch, or a GPU by its number.
    """
    if together.size == 1 and settings.data_shards == 1:
        return
    from sae_plugins.resume.division import check_shards, shards_for
    from sae_plugins.settings.checks import check_gpus

    if not settings.get("resume") and settings.get("data_shards") is None:
        settings.values["data_shards"] = shards_for(together.size)
    check_gpus(settings, ranks=together.size)
    if settings.data_shards > 1 and settings.get("resume_from_checkpoint"):
        raise SaePluginsError(
            "--resume_from_checkpoint: SAELens' own checkpoints go on in one text, and this run "
            f"has {settings.data_shards} data shards; begin with the SAE (--from_pretrained_path), "
            "or leave torchrun out"
        )
    batch = int(settings.get("train_batch_size_tokens"))
    check_shards(settings.data_shards, batch, together.size)


def for_saelens(settings: Settings, together: Ranks) -> SAELensSettings:
    """The settings that are SAELens' own; rank 0 alone logs."""
    own = settings.for_saelens()
    return own if together.writes else replace(own, logger={})


def check_alike(settings: Settings, setup: Setup, recipe: dict[str, Any], together: Ranks) -> None:
    """Refuse ranks with other settings, versions, code, sources or devices.

    Raises:
        RankError: says which, and how they differ.
    """
    if together.size == 1:
        return
    from sae_plugins.base.code import TRAINING
    from sae_plugins.base.fingerprints import of_value
    from sae_plugins.base.identity import of_code
    from sae_plugins.runs.machine import machine

    acting = [plugin for plugin, _ in settings.plan.plugins if not plugin.observes_only]
    sources = {f"the files of the {name}": of_value(f) for name, f in setup.made_from().items()}
    facts = {
        **{f"--{name}": value for name, value in recipe.items() if name != "description"},
        **{f"the machine's {name}": value for name, value in machine(setup.settings).items()},
        "the code": of_value(of_code(TRAINING, acting)),
        **sources,
    }
    together.same("a run's settings, code, files and devices", facts)


def check_shared(path: Path, together: Ranks) -> None:
    """Refuse a folder that is on rank 0's disk only, since all ranks write checkpoints into it.

    Raises:
        SaePluginsError: on the ranks that do not see it.
    """
    if together.size > 1 and not path.is_dir():
        raise SaePluginsError(
            f"{path} is not on this rank's machine, and all ranks write checkpoints there: choose "
            "an --output_path on a disk that all of them share"
        )
