"""What the two kinds of runs, on a language model and on a synthetic one, have in common."""

from __future__ import annotations

import dataclasses
import logging
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class

from sae_plugins.plugin import PluginError
from sae_plugins.runs import CHECKPOINTS

D_SAE_PER_D_IN = 4
_EXPECTED_WARNINGS = (
    "Dataset is not tokenized",
    "The training dataset contains fewer samples",  # compares documents with tokens
    "This SAE has non-empty model_from_pretrained_kwargs",
)
_NEW_EPOCH = "All samples in the training dataset"


@dataclass(frozen=True)
class JobSettings:
    """The settings of one run, spelt as SAELens spells them, without what is not set.

    Attributes:
        model_name: a language model, or synthetic:PRESET.
        architecture: SAELens' name of the SAE's architecture.
        seed: orders the data.
        heldout_tokens: tokens that score the SAE; 0 for none.
        sae: fields of the SAE's config; d_in and d_sae may be missing.
        runner: fields of the runner's config; model_name and dtype may be among them.
        logger: fields of the logging config.
    """

    model_name: str
    architecture: str = "standard"
    seed: int = 0
    heldout_tokens: int = 0
    sae: Mapping[str, Any] = field(default_factory=dict)
    runner: Mapping[str, Any] = field(default_factory=dict)
    logger: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where the SAE lives; cuda where nothing is said and there is one."""
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return str(self.runner.get("device") or default)


class Job(Protocol):
    """A run that is ready to start: its model is loaded and everything checked."""

    sae_config: Any

    def config(self, folder: Path | None) -> Any:
        """SAELens' config of the run, which writes into `folder`."""
        ...

    def prepare(self, folder: Path) -> Callable[[], dict[str, float]]:
        """Draw the SAE's weights, inside an open `sae_plugins.plugins` that has seeded them.

        Returns:
            A function to call in the same context. It trains, saves into `folder`, and returns
            what is known about the trained SAE besides held-out metrics, by name.

        Raises:
            PluginError: SAELens refuses the settings.
        """
        ...

    def heldout(self, sae: SAE[Any]) -> dict[str, float]:
        """Held-out metrics of the SAE as it was saved; empty if none were asked for."""
        ...


def sae_config(settings: JobSettings, d_in: int) -> Any:
    """The config of the SAE to train.

    Raises:
        PluginError: a given d_in is another, or SAELens refuses a field.
    """
    fields = dict(settings.sae)
    given = fields.pop("d_in", None)
    if given is not None and given != d_in:
        hook = settings.runner.get("hook_name")
        where = f"{hook} of {settings.model_name}" if hook else settings.model_name
        raise PluginError(
            f"--d_in {given} is wrong: {where} has {d_in} dimensions; leave --d_in out"
        )
    d_sae = fields.pop("d_sae", None) or D_SAE_PER_D_IN * d_in
    if settings.architecture == "matryoshka_batchtopk" and not fields.get("matryoshka_widths"):
        fields["matryoshka_widths"] = [d_sae // 8, d_sae // 4, d_sae // 2, d_sae]
    k = fields.get("k")
    if settings.architecture in ("topk", "abstopk") and isinstance(k, float):
        raise PluginError(f"--k {k}: {settings.architecture} SAEs need a whole number")
    _, config_class = get_sae_training_class(settings.architecture)
    with settings_accepted():
        config: Any = config_class(
            d_in=d_in,
            d_sae=d_sae,
            device=settings.device,
            dtype=settings.runner.get("dtype", "float32"),
            **fields,
        )
    if hasattr(config, "k") and config.k > d_sae:
        raise PluginError(f"--k {config.k} must be at most the --d_sae {d_sae}")
    return config


def defaults_of(*configs: Any) -> dict[str, Any]:
    """What SAELens takes for the fields of these configs that nobody sets."""
    defaults: dict[str, Any] = {}
    for config in configs:
        for known in dataclasses.fields(config):
            if known.default is not dataclasses.MISSING:
                defaults.setdefault(known.name, known.default)
            elif known.default_factory is not dataclasses.MISSING:
                defaults.setdefault(known.name, known.default_factory())
    return defaults


def runner_fields(settings: JobSettings, folder: Path | None) -> dict[str, Any]:
    """Fields that both runners' configs have, for a run that writes into `folder`."""
    elsewhere = ("model_name", "checkpoint_path", "dtype")
    fields = {name: value for name, value in settings.runner.items() if name not in elsewhere}
    checkpoints = None
    if folder and (fields.get("n_checkpoints") or fields.get("save_final_checkpoint")):
        checkpoints = settings.runner.get("checkpoint_path") or str(folder / CHECKPOINTS)
    return {
        **fields,
        "device": settings.device,
        "output_path": None if folder is None else str(folder),
        "checkpoint_path": checkpoints,
        "logger": LoggingConfig(**{"log_to_wandb": False, **settings.logger}),
    }


@contextmanager
def settings_accepted() -> Iterator[None]:
    """Turn SAELens' complaints about settings into errors for the user."""
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"SAELens refuses these settings: {reason}") from error


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PluginError(
            f"--device {device} cannot be used: {reason}; try --device cpu"
        ) from error


def check_wandb(log_to_wandb: bool) -> None:
    """Refuse to log to Weights & Biases where nobody is logged in, before hours of training."""
    if not log_to_wandb:
        return
    try:
        import wandb
    except ImportError as error:
        raise PluginError(
            "--log_to_wandb needs wandb, which cannot be imported: pip install wandb, or leave the "
            "flag out"
        ) from error
    if _wandb_mode(wandb) in (None, "online", "shared") and not _logged_in(wandb):
        raise PluginError(
            "--log_to_wandb: nobody is logged in to Weights & Biases; run `wandb login`, set "
            "WANDB_MODE=offline to log into a local folder, or leave the flag out"
        )


def _wandb_mode(wandb: Any) -> str | None:
    mode: str | None = wandb.setup().settings.mode
    return mode


def _logged_in(wandb: Any) -> bool:
    """Whether wandb has a key, without asking for one."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # before wandb 0.22 this is how to ask
        return bool(wandb.api.api_key)


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Restore python's, numpy's and torch's global random state afterwards."""
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


def isolated(evaluator: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An evaluator that leaves no trace in the global random state."""

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, Any]:
        with isolated_random_state():
            return evaluator(*args, **kwargs)

    return evaluate


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put back the handlers of SIGINT and SIGTERM, which SAELens' runner replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def quiet(repeats: bool = True) -> Iterator[None]:
    """Keep SAELens from announcing what its caller arranged: our model, our text, no tokens.

    Args:
        repeats: also that the text begins anew, which is news about a dataset of the user's.
    """
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        with warnings.catch_warnings():
            for start in (*_EXPECTED_WARNINGS, *([_NEW_EPOCH] if repeats else [])):
                warnings.filterwarnings("ignore", message=rf"\s*{start}")
            yield
    finally:
        logger.setLevel(level)
