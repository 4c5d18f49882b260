"""`sae-plugins train --dry_run`: what a run would be, needs and takes; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sae_plugins.base.secrets import redacted
from sae_plugins.entrypoints.train_checkpoints import checkpoints_of
from sae_plugins.entrypoints.train_disk import (
    bytes_of_checkpoint,
    bytes_of_saelens_checkpoint,
    bytes_on_disk,
    most_checkpoints,
    saelens_checkpoints,
)
from sae_plugins.entrypoints.train_output import print_plan, print_rows

if TYPE_CHECKING:
    from sae_plugins.resume.checkpoints import Checkpoints
    from sae_plugins.runs.probe import Speed
    from sae_plugins.runs.run_folder import RunFolder
    from sae_plugins.runs.setup import Setup
    from sae_plugins.settings.settings import Settings


_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "WANDB_CACHE_DIR")
"""Where torch.compile keeps kernels, and Weights & Biases logs that it was started."""
_ON_TOP = "loading, checkpoints, scoring and figures come on top"


def dry_run(settings: Settings | None, folder: RunFolder) -> int:
    """Make every check of a start, and print what would come of it; the exit code."""
    if settings is None or (settings.get("resume") and folder.trained is not None):
        left = "moved to its place" if settings is None else "scored"
        print(f"the training in {folder.path} has ended; its SAE has only to be {left}")
        return 0
    from sae_plugins.runs.downloads import copies_in, downloads
    from sae_plugins.runs.load import load_setup

    with _nothing_kept() as scratch:
        print(f"loading {settings.model_name} ...", flush=True)
        chosen = settings.for_saelens()
        missing = downloads(chosen)
        wanted = chosen
        if chosen.activation_cache is not None:
            cache = replace(chosen.activation_cache, takes=False)
            wanted = replace(chosen, activation_cache=cache)
        with nullcontext() if missing else copies_in(scratch, chosen):
            setup = load_setup(wanted, is_loaded=not missing)
            each, disk = bytes_of_checkpoint(settings, setup), bytes_on_disk(settings, setup)
            folder.check_space(disk, most_checkpoints(settings) * each)
            done, speed = _tried(settings, setup, folder, scratch, bool(missing))
        print_plan(settings, setup, folder, done, each, setup.plan_cache())
        print_rows(
            {
                **_plugins(settings),
                "parameters": ", ".join(f"{k} {v:,}" for k, v in setup.parameters().items()),
                **_memory(setup, speed),
                **_disk(settings, setup, folder, disk, each),
                **_downloads(missing),
                **_time(settings, setup, done, speed),
            }
        )
    return 0


@contextmanager
def _nothing_kept() -> Iterator[Path]:
    """A scratch folder for what is written inside, by whomever."""
    import datasets

    from sae_plugins.base.children import environment
    from sae_plugins.base.fingerprints import nothing_remembered

    caches = datasets.is_caching_enabled()
    with TemporaryDirectory(prefix="sae-plugins-") as scratch, nothing_remembered():
        datasets.disable_caching()  # what it orders by a seed goes among temporary files, then
        try:
            with environment(**dict.fromkeys(_CACHES, scratch)):
                yield Path(scratch)
        finally:
            if caches:
                datasets.enable_caching()


def _tried(
    settings: Settings, setup: Setup, folder: RunFolder, scratch: Path, is_missing: bool
) -> tuple[int | None, Speed | None]:
    """After which step the run goes on, if it does, and how fast it is, if it can be tried."""
    from sae_plugins.runs.probe import check_place, probe

    def checkpoints() -> Checkpoints:
        found = checkpoints_of(settings, folder, scratch)
        found.origin.facts.update(setup.made_from())
        return found

    if is_missing:
        return checkpoints().step, None
    if settings.get("resume"):
        check_place(setup, settings.plan, scratch, checkpoints())
    here = checkpoints()
    done = here.step
    return done, probe(setup, settings.plan, scratch, here)


# -- what it would be ------------------------------------------------------------------------------


def _plugins(settings: Settings) -> dict[str, list[str]]:
    """The options of the plugins as they will be, and when they act."""
    from sae_plugins.framework.steps import in_steps, schedule
    from sae_plugins.settings.values import as_text  # which imports pydantic

    options, scheduled = [], []
    for plugin, given in settings.plan.plugins:
        values = redacted(in_steps(given, settings.batches).model_dump(mode="json"))
        if shown := ", ".join(f"{name} {as_text(value)}" for name, value in values.items()):
            options.append(f"{plugin.name}: {shown}")
        if (when := schedule(given, settings.batches)) is not None:
            scheduled.append(f"{plugin.name}: {when}")
    return {name: lines for name, lines in (("options", options), ("schedule", scheduled)) if lines}


def _memory(setup: Setup, speed: Speed | None) -> dict[str, list[str]]:
    """What is needed on each device, the largest first."""
    from sae_plugins.base.files import size
    from sae_plugins.framework.profile import SAE_HELD
    from sae_plugins.runs.memory import budgets

    lines = []
    for budget in budgets(setup.needs()):
        needed, free = size(budget.needed), size(budget.free)
        lines.append(f"{budget.device}: {needed} needed, {free} available")
        lines += [f"  {size(need.count)} for {need.what}" for need in budget.needs]
    held = {} if speed is None else speed.held
    kept = [f"{name} {size(count)}" for name, count in held.items() if name != SAE_HELD]
    return {"memory": lines + ([f"plugins keep: {', '.join(kept)}"] if kept else [])}


def _disk(
    settings: Settings, setup: Setup, folder: RunFolder, disk: int, each: int
) -> dict[str, list[str]]:
    """What the run folder takes at most, and what SAELens' checkpoints take elsewhere."""
    from sae_plugins.base.files import size

    most, count = most_checkpoints(settings), saelens_checkpoints(settings)
    lines = [
        f"{size(disk + most * each)} needed at most, {size(folder.free())} free",
        f"  {size(most * each)} for {most} checkpoints to go on from, while one is written",
        f"  {size(disk)} for the SAE and what is saved with it",
    ]
    if count:
        where = settings.get("checkpoint_path") or "the run's folder"
        own = size(bytes_of_saelens_checkpoint(setup))
        lines.append(f"  SAELens writes {count} checkpoints of {own} each into {where}")
    return {"disk": lines}


def _downloads(missing: Mapping[str, int]) -> dict[str, list[str]]:
    from sae_plugins.base.files import size

    if not missing:
        return {}
    lines = [f"{what}: {size(count)}" for what, count in missing.items()]
    return {"to download": [*lines, "until then, no step is tried, and no text is checked"]}


def _time(
    settings: Settings, setup: Setup, done: int | None, speed: Speed | None
) -> dict[str, str | list[str]]:
    """About how long the steps take that are to come."""
    from sae_plugins.base.text import duration
    from sae_plugins.runs.probe import tokens_before

    batch = int(settings.get("train_batch_size_tokens"))
    steps = settings.batches - (done or 0)
    tokens = max(0, int(settings.get("training_tokens")) - (done or 0) * batch)
    rows: dict[str, str | list[str]] = {
        "to train": f"{steps:,} steps on {tokens:,} tokens" + (" are left" if done else "")
    }
    if settings.get("profile"):
        rows["profile"] = "measures where the time goes, which slows the run on CUDA"
    if speed is None:
        return rows
    ahead = 0 if done else tokens_before(setup)
    seconds = speed.seconds(steps, tokens + ahead)
    parts = speed.per_step(batch)
    whole = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])
    shown = [f"  {each / whole:5.1%} {1000 * each:,.2f} ms {what}" for what, each in largest]
    rows["speed"] = [
        f"about {batch / whole:,.0f} tokens/s, by {speed.steps} steps; a step of {batch:,} tokens:",
        *(line for line, (_, each) in zip(shown, largest, strict=True) if each >= 0.001 * whole),
    ]
    rows["time"] = f"about {duration(seconds)}; {_ON_TOP}"
    return rows
