"""Logging to Weights & Biases, where SAELens leaves off: figures, and what to do without a login.

SAELens logs the metrics, those of plugins as `metrics/NAME`, and the SAE of a language model as an
artifact. Here are the figures, the SAE of a synthetic model, and one log per run however often it
is interrupted. What fails here costs the log, never the training.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from sae_plugins.base.errors import PluginError
from sae_plugins.base.names import file_name
from sae_plugins.base.secrets import redacted_words

logger = logging.getLogger(__name__)
P = ParamSpec("P")


def check() -> None:
    """Say before hours of training where the log will be.

    Raises:
        PluginError: there is no wandb.
    """
    try:
        import wandb
    except ImportError as error:
        raise PluginError(
            "--log_to_wandb needs wandb, which cannot be imported: pip install wandb, or leave the "
            "flag out"
        ) from error
    if not _can_upload(wandb):
        logger.warning(
            "--log_to_wandb: nobody is logged in to Weights & Biases, so the run is logged into "
            "the folder wandb; `wandb login` and `wandb sync wandb/offline-run-...` upload it"
        )


@contextmanager
def one_log(notes: dict[str, Any], given: str | None, resumed: bool) -> Iterator[None]:
    """Log under one id, noted as "wandb_id", however often the run is interrupted.

    Args:
        notes: what the run's checkpoints keep.
        given: the id that the user wants.
        resumed: the run goes on, and so does its log.
    """
    import wandb

    settings, words = wandb.setup().settings, sys.argv
    before = settings.run_id, settings.resume, settings.mode
    notes.setdefault("wandb_id", given or settings.run_id or secrets.token_hex(4))
    settings.run_id = notes["wandb_id"]
    settings.resume = "allow" if resumed else settings.resume
    if not _can_upload(wandb):
        settings.mode = "offline"
    sys.argv = redacted_words(words)  # which is logged, too
    try:
        yield
    finally:
        sys.argv = words
        settings.run_id, settings.resume, settings.mode = before
        if wandb.run is not None:  # SAELens ends it only where all goes well
            wandb.finish(exit_code=1)


def _can_upload(wandb: Any) -> bool:
    mode = wandb.setup().settings.mode
    return mode not in (None, "online", "shared") or _logged_in(wandb)


def _logged_in(wandb: Any) -> bool:
    """Whether wandb has a key, without asking for one."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # before wandb 0.22 this is how to ask
        return bool(wandb.api.api_key)


def never_breaks_a_run(log: Callable[P, None]) -> Callable[P, None]:
    """The same, but what it raises is reported as an error that costs the log alone."""

    @wraps(log)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            log(*args, **kwargs)
        except Exception as error:
            logger.error("not logged to Weights & Biases: %s", error)

    return quietly


@never_breaks_a_run
def log_figures(figures: Sequence[Path], name: str) -> None:
    """Show figures in the run's panel, and keep them as its artifact `<name>_figures`."""
    import wandb

    wandb.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in figures})
    _log_artifact(f"{name}_figures", "figures", figures)


@never_breaks_a_run
def log_sae(files: Sequence[Path], name: str) -> None:
    """Keep a trained SAE's files as the artifact `name`, as SAELens does for language models."""
    _log_artifact(name, "model", files, ["final_model"])


def _log_artifact(name: str, kind: str, files: Sequence[Path], aliases: Sequence[str] = ()) -> None:
    import wandb

    # only these characters are taken, without +
    artifact = wandb.Artifact(file_name(name.replace("+", "-")), type=kind)
    for file in files:
        artifact.add_file(str(file))
    wandb.log_artifact(artifact, aliases=[*aliases])
