"""Scores of SAEs that exist already, on the text that those of a study are scored on.

The folder of such a cell has a summary like a run's, and the decoder rows; the SAE stays where it
is. What it then was is noted by its hash: where another one lies now, it is scored again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.base.files import whole, write
from sae_plugins.base.machine_faults import is_of_machine
from sae_plugins.eval_suites.evaluation.metrics import HELDOUT
from sae_plugins.runs.folder import ORIGIN, SUMMARY
from sae_plugins.study.cells import Cell, grouped
from sae_plugins.study.progress import Progress
from sae_plugins.study.tasks import Task
from sae_plugins.study.traces import DECODER

if TYPE_CHECKING:
    from sae_plugins.runs.setup import Setup

_HASH = "sae/hash"
"""The line of the summary that tells which SAE was scored."""


def check(cells: Sequence[Cell], folder: Path) -> None:
    """Load SAEs before anything is trained, and refuse those that a study cannot compare.

    One that is scored already may be gone, or out of reach, meanwhile.

    Raises:
        SaePluginsError: with a sentence for each that is not there, is damaged, or is of another
            model, hook or size, or is the same for several seeds.
    """
    from sae_plugins.eval_suites.evaluation.loading import load_subject
    from sae_plugins.runs.load import load_setup

    problems = Problems()
    for members in grouped(cells, lambda cell: cell.model).values():
        settings = members[0].settings.for_saelens()
        d_in = load_setup(settings, is_loaded=False).sae_config.d_in
        known: dict[tuple[str, str, str], Cell] = {}
        for cell in members:
            with problems, prefixed(f"arms.{cell.arm}.saes"):
                try:
                    subject = load_subject(str(cell.source))
                except SaePluginsError:
                    if cell.summary(folder) is None:
                        raise
                else:
                    for misfit in _misfits(cell, subject, settings, d_in):
                        raise SaePluginsError(misfit)
                    same = known.setdefault((cell.arm, cell.sparsity, subject.hash), cell)
                    if same.seed != cell.seed:
                        raise SaePluginsError(
                            f"{same.source} and {cell.source} are the same SAE, named for the "
                            f"seeds {same.seed} and {cell.seed}, and one SAE tells nothing of what "
                            "seeds do; name it once"
                        )
    problems.stop()


def _misfits(cell: Cell, subject: Any, settings: Any, d_in: int) -> Iterator[str]:
    """Why an SAE cannot be compared with those of a model, a sentence if so."""
    from sae_plugins.runs.language_models.hooks import as_transformer_lens
    from sae_plugins.runs.sources import repository_of

    def known_as(name: str) -> str:
        return repository_of("model_name", name, {}) or name

    hook = as_transformer_lens(settings.runner.get("hook_name") or "")
    if known_as(subject.model_name) != known_as(settings.model_name):
        yield (
            f"{cell.source} is an SAE of {subject.model_name}, and model {cell.model} of the study "
            f"is {settings.model_name}; name it under arms.{cell.arm}.models.MODEL.saes for the "
            "model that it is of, or leave it out"
        )
    elif subject.hook_name != hook and not settings.is_synthetic:
        yield (
            f"{cell.source} is an SAE at {subject.hook_name}, and the hook_name of model "
            f"{cell.model} is {hook}; compare it in a study of its own hook"
        )
    elif subject.d_in != d_in:
        yield (
            f"{cell.source} has a d_in of {subject.d_in}, and {settings.model_name} has {d_in} "
            "dimensions there; its config names another model or hook than the one that it is of"
        )


def score(
    cells: Sequence[Cell], task: Task, progress: Progress, shared: Setup | None
) -> dict[Cell, Exception | None]:
    """Score SAEs that are not scored yet as they are now, on the held-out text.

    Args:
        cells: of one model and seed.
        task: of which they are.
        progress: hears of each.
        shared: a run of the same model, whose held-out text serves.

    Returns:
        What went wrong with each, None if nothing did. One that was scored before stays so.
    """
    from sae_plugins.runs.load import load_setup

    @functools.cache
    def setup() -> Setup:
        settings = replace(cells[0].settings.for_saelens(), activation_cache=task.cache)
        return shared.sharing(settings) if shared else load_setup(settings)

    done: dict[Cell, Exception | None] = {}
    if cells:
        progress.stage(f"{task.model}, seed {task.seed}: SAEs that exist already")
    for cell in cells:
        done[cell] = None
        try:
            _score(cell, task.folder, setup)
        except Exception as error:  # of the Hub, and anybody's SAE
            if is_of_machine(error):
                raise
            done[cell] = error
        progress.advance(1)
    return done


def _score(cell: Cell, folder: Path, setup: Callable[[], Setup]) -> None:
    """Write what is known of an SAE into its cell's folder, unless it is there."""
    import torch
    from safetensors.torch import save_file

    from sae_plugins.eval_suites.evaluation.loading import load_subject
    from sae_plugins.runs.machine import machine

    subject = load_subject(str(cell.source), cell.settings.for_saelens().device)
    known = cell.summary(folder)
    if known is not None and known.get(_HASH) == subject.hash:
        return
    (found,) = setup().heldout([subject.sae])
    place = folder / cell.folder
    place.mkdir(parents=True, exist_ok=True)
    with whole(place / DECODER) as partial:
        rows = subject.sae.W_dec.detach().to("cpu", torch.float32).contiguous()
        save_file({"W_dec": rows}, partial)
    told = {**cell.told, "machines": [machine(cell.settings.for_saelens())]}
    write(place / ORIGIN, json.dumps(told, indent=1) + "\n")
    summary = {_HASH: subject.hash, **{f"{HELDOUT}/{name}": value for name, value in found.items()}}
    write(place / SUMMARY, json.dumps(summary, indent=1) + "\n")  # last: with it, the cell is whole
