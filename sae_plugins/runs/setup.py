"""What runs on a language model and runs on a synthetic one have in common."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from sae_lens import SAE
from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.base.identity import Fact
from sae_plugins.base.kept import Folder
from sae_plugins.base.ranks import ranks
from sae_plugins.base.secrets import redacted
from sae_plugins.base.seeds import isolated_random_state
from sae_plugins.base.shown_paths import rootless
from sae_plugins.framework.architectures import architecture
from sae_plugins.runs.folder import SAELENS_CHECKPOINTS
from sae_plugins.runs.sae_fields import D_SAE_PER_D_IN, check_fields
from sae_plugins.runs.sources import REVISIONS, ROWS
from sae_plugins.runs.weights_and_biases import never_breaks_a_run
from sae_plugins.world.synthetic_models import SYNTHETIC

_EXPECTED_WARNINGS = (
    "Dataset is not tokenized",
    "The training dataset contains fewer samples",  # compares documents with tokens
    "This SAE has non-empty model_from_pretrained_kwargs",
    "All samples in the training dataset",  # said with numbers, of a dataset of the user's
)


@dataclass(frozen=True)
class SAELensSettings:
    """The settings of one run, spelt as SAELens spells them, without what is not set.

    Attributes:
        model_name: a language model, or synthetic:PRESET.
        architecture: SAELens' name of the SAE's architecture.
        seed: orders the data.
        text_seed: orders the text in its place, where it is given.
        heldout_tokens: tokens that score the SAE; 0 for none.
        sae: fields of the SAE's config; d_in and d_sae may be missing.
        runner: fields of the runner's config; model_name and dtype may be among them.
        logger: fields of the logging config.
        activation_cache: where the language model's activations are kept, which changes nothing.
        following_tokens: tokens that are read after the last one of the training.
        unseen_tokens: held-out tokens that set thresholds, besides those that score the SAE.
        recipe: name of the packaged recipe that the run follows, if it does.
        data_shards: parts of the text, which several ranks can read at once.
    """

    model_name: str
    architecture: str = "standard"
    seed: int = 0
    heldout_tokens: int = 0
    sae: Mapping[str, Any] = field(default_factory=dict)
    runner: Mapping[str, Any] = field(default_factory=dict)
    logger: Mapping[str, Any] = field(default_factory=dict)
    activation_cache: Folder | None = None
    following_tokens: int = 0
    unseen_tokens: int = 0
    recipe: str | None = None
    data_shards: int = 1
    text_seed: int | None = None

    @property
    def order(self) -> int:
        """The seed of the text's order."""
        return self.seed if self.text_seed is None else self.text_seed

    @property
    def is_synthetic(self) -> bool:
        """Whether the run is on SAELens' synthetic model."""
        return self.model_name.startswith(SYNTHETIC)

    @property
    def revisions(self) -> dict[str, str]:
        """What is read at a revision of the Hub: the revision by its flag."""
        return {name: self.runner[name] for name in REVISIONS if self.runner.get(name)}

    @property
    def provenance(self) -> dict[str, str]:
        """What an SAE's metadata says of its sources besides what SAELens does, by flag."""
        rows = {name: self.runner[name] for name in ROWS if self.runner.get(name)}
        return {**self.revisions, **rows}

    @property
    def device(self) -> str:
        """Where the SAE lives; cuda where nothing is said and there is one."""
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return str(self.runner.get("device") or default)


Save = Callable[[Path, "Tensor | None"], None]
"""Saves a trained SAE into a folder, with the log of its features' firing frequencies, if any."""


class Setup(Protocol):
    """A run that is ready to start: its model is loaded and everything checked."""

    settings: SAELensSettings
    sae_config: Any

    @property
    def loaded_as(self) -> str:
        """By whose code its model is loaded, in words."""
        ...

    def needs(self, is_there: bool = True) -> Sequence[Any]:
        """What the run needs of memory, as `memory.Need`; whether its model is already there."""
        ...

    def parameters(self) -> dict[str, int]:
        """How many numbers the SAE has, and the language model if there is one."""
        ...

    def sharing(self, settings: SAELensSettings) -> Setup:
        """A setup with other settings, and this one's model and text where they are the same."""
        ...

    def made_from(self) -> dict[str, Fact | None]:
        """What is known of the sources of the run, besides what is in memory."""
        ...

    def plan_cache(self) -> str | None:
        """What is about to be kept of the language model, in a sentence; None if nothing is.

        Raises:
            PluginError: there is no room for it.
        """
        ...

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

    def stream(self) -> Iterator[Tensor]:
        """The batches [B, d_in] that `prepare` trains on, once `seed_data` has been called."""
        ...

    def trainer(self, folder: Path) -> tuple[SAETrainer[Any, Any], Save]:
        """Draw the SAE's weights as `prepare` does, for a caller who gives it the batches."""
        ...

    def tell_skipped(self) -> None:
        """Say once what of the training text was skipped; all ranks ask it together."""
        ...

    def unseen(self, tokens: int) -> list[Tensor]:
        """Activations of so many held-out tokens that do not score SAEs; empty without such text.

        `settings.unseen_tokens` are held out for that; there may be more.
        """
        ...

    def heldout(self, saes: Sequence[SAE[Any]]) -> list[dict[str, float]]:
        """Held-out metrics of SAEs as they were saved; empty if none were asked for."""
        ...


def sae_config(settings: SAELensSettings, d_in: int) -> Any:
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
    row = architecture(settings.architecture)
    if row.ordered and not fields.get("matryoshka_widths"):
        fields["matryoshka_widths"] = [d_sae // 8, d_sae // 4, d_sae // 2, d_sae]
    hook_name = settings.runner.get("hook_name", "")
    check_fields(row, {**fields, "d_sae": d_sae}, hook_name, settings.device)
    if row.k_per == "token" and "k" in fields:
        fields["k"] = int(fields["k"])  # as SAELens has it; it may be 8.0
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


def runner_fields(settings: SAELensSettings, folder: Path | None) -> dict[str, Any]:
    """Fields that both runners' configs have, for a run that writes into `folder`."""
    elsewhere = ("model_name", "checkpoint_path", "dtype", *REVISIONS, *ROWS)
    fields = {name: value for name, value in settings.runner.items() if name not in elsewhere}
    checkpoints = None
    folder = folder and Path(os.path.abspath(folder))
    wanted = fields.get("n_checkpoints") or fields.get("save_final_checkpoint")
    if folder and wanted and ranks().writes:
        checkpoints = settings.runner.get("checkpoint_path") or str(folder / SAELENS_CHECKPOINTS)
    return {
        **fields,
        "device": settings.device,
        "output_path": None if folder is None else str(folder),
        "checkpoint_path": checkpoints,
        "logger": Log(**{"log_to_wandb": False, **settings.logger}),
    }


class Log(LoggingConfig):
    """SAELens' settings of Weights & Biases, which log an SAE if that can be."""

    @never_breaks_a_run
    def log(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Log what it is given, with the trainer's config, without secrets and folders."""
        told = rootless(redacted(vars(trainer.cfg)), "checkpoint_path")
        config = SimpleNamespace(**told)
        super().log(SimpleNamespace(sae=trainer.sae, cfg=config), *args, **kwargs)


@contextmanager
def settings_accepted() -> Iterator[None]:
    """Turn SAELens' complaints about settings into errors for the user."""
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        reason = _as_flags(" ".join(str(error).split()))
        raise PluginError(f"SAELens refuses these settings: {reason}") from error


def _as_flags(reason: str) -> str:
    """SAELens' names of settings, such as cfg.target_l0, as the flags that they are."""
    configs: tuple[Any, ...] = (
        LanguageModelSAERunnerConfig,
        *(c for _, c in SAE_TRAINING_CLASS_REGISTRY.values()),
    )
    known = {known.name for config in configs for known in dataclasses.fields(config)}
    # a short name without an underscore, such as k, may be any word
    names = "|".join(sorted(name for name in known if "_" in name))
    return re.sub(rf"\bcfg\.(?=\w)|(?<![\w.-])(?=(?:{names})\b)", "--", reason)


def isolated(evaluator: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """SAELens' evaluator, such that it leaves no trace in the global random state."""

    def evaluate(sae: Any, data_provider: Any, activation_scaler: Any) -> dict[str, Any]:
        # A thread that reads ahead shuffles too. The evaluator would pause it inside, where what
        # it has drawn until then is lost; it reads nothing from the provider.
        paused = getattr(data_provider, "paused", nullcontext)
        with paused(), isolated_random_state():
            return evaluator(sae, iter(()), activation_scaler)

    return evaluate


@contextmanager
def quiet() -> Iterator[None]:
    """Keep SAELens from announcing what its caller arranged: our model, our text, no tokens."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        with warnings.catch_warnings():
            for start in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=rf"\s*{start}")
            yield
    finally:
        logger.setLevel(level)
