"""Runs on a language model's activations: the model, its text, and SAELens' runner over them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_plugins.base.errors import PluginError, prefixed
from sae_plugins.base.identity import Fact
from sae_plugins.base.ranks import ranks
from sae_plugins.base.saelens import (
    language_model_trainer,
    trained_positions,
    with_no_secrets_told,
)
from sae_plugins.base.seeds import isolated_random_state, seed_data
from sae_plugins.resume.division import check_buffer
from sae_plugins.resume.shards import divisible, split, stream_of
from sae_plugins.runs import weights_and_biases
from sae_plugins.runs.activation_cache import ActivationCache, harvests
from sae_plugins.runs.cached import cached_activations
from sae_plugins.runs.checks import check_devices, check_sources
from sae_plugins.runs.heldout import heldout_metrics, tokens_after
from sae_plugins.runs.language_models.loader import Loader, Looks
from sae_plugins.runs.memory import (
    Need,
    check_memory,
    count_parameters,
    needs_of_language_model,
    needs_of_sae,
)
from sae_plugins.runs.models import (
    activation_size,
    check_chat,
    check_context_size,
    check_positions,
    check_tokens,
    load_model,
    model_facts,
    model_loader,
    model_looks,
    with_tokens_there,
)
from sae_plugins.runs.pretrained import begin_with, check_pretrained
from sae_plugins.runs.setup import (
    SAELensSettings,
    Save,
    isolated,
    quiet,
    runner_fields,
    sae_config,
    settings_accepted,
)
from sae_plugins.runs.sources import commits, made_from
from sae_plugins.runs.special_tokens import watch_special_tokens
from sae_plugins.runs.texts.documents import Documents
from sae_plugins.runs.texts.reading import watch
from sae_plugins.runs.texts.splits import TextSplits, load_text, text_facts

logger = logging.getLogger(__name__)


class LanguageModelSetup:
    """A `Setup` on a TransformerLens or Hugging Face model."""

    def __init__(
        self,
        settings: SAELensSettings,
        other: LanguageModelSetup | None = None,
        *,
        is_loaded: bool = True,
    ) -> None:
        """Check everything that a model's config tells, load the model, and find the text.

        Args:
            settings: the run's.
            other: a setup whose model and text serve where they are the same.
            is_loaded: whether the model and the text are loaded; without them, a setup only tells
                what the run would be.

        Raises:
            PluginError: no such model, hook, dataset or device, or settings that do not fit.
        """
        if settings.logger.get("log_to_wandb"):
            weights_and_biases.check()
        check_devices(settings)
        settings = _with_local_sae(settings)
        check_sources(settings)
        self.settings = settings = _with_commits(settings)
        shared = None
        if other is not None and model_facts(other.settings) == model_facts(settings):
            shared = other
        self.loader: Loader = shared.loader if shared else model_loader(settings)
        self.looks: Looks = shared.looks if shared else model_looks(self.loader)
        check_context_size(self.looks, settings)
        check_positions(settings)
        check_tokens(self.looks, settings)
        self.sae_config = sae_config(settings, activation_size(self.looks, settings))
        check_pretrained(settings, self.sae_config)
        check_memory(self.needs(is_there=shared is not None))
        held, shards = settings.heldout_tokens, settings.data_shards
        self.cached = cached_activations(self.config(None), held, shards)
        self.activation_cache = _activation_cache(settings, self.sae_config.d_in)
        if not is_loaded:
            return
        self.model: Any = shared.model if shared else load_model(self.loader, self.looks, settings)
        check_chat(self.model, settings)
        self.settings = settings = with_tokens_there(self.model, settings)
        if self.cached is not None:
            self.text: TextSplits = self.cached.text
        elif other is not None and text_facts(other.settings) == text_facts(settings):
            self.text = other.text
        else:
            self.text = load_text(settings, self.model, self.looks.vocabulary)
        self.check_heldout()

    def needs(self, is_there: bool = True) -> list[Need]:
        """What the run needs of memory; whether its model is already there."""
        shards = self.settings.data_shards
        return [
            *needs_of_sae(self.settings, self.sae_config),
            *needs_of_language_model(self.looks.model, self.config(None), is_there, shards),
        ]

    def parameters(self) -> dict[str, int]:
        """How many numbers the SAE and the language model have."""
        model = sum(parameter.numel() for parameter in self.looks.model.parameters())
        return {"SAE": count_parameters(self.sae_config), "language model": model}

    @property
    def loaded_as(self) -> str:
        """By whose code its language model is loaded, in words."""
        return self.loader.kind

    def sharing(self, settings: SAELensSettings) -> LanguageModelSetup:
        """A setup with other settings, and this one's model and text where they are the same."""
        return LanguageModelSetup(settings, self)

    def plan_cache(self) -> str | None:
        """What is about to be kept of the language model, in a sentence; None if nothing is."""
        return None if self.activation_cache is None else self.activation_cache.plan()

    def made_from(self) -> dict[str, Fact | None]:
        """What is known of the sources of the run, besides what is in memory: the model."""
        found = made_from(self.settings.model_name, self.settings.runner)
        known: dict[str, Fact | None] = {
            name: fact for name, fact in found.items() if name != "model" and fact
        }
        if "world" in known and "dataset" not in known:  # whose files have its text
            known["dataset"] = {"content": "the embedded world's text"}
        return known

    def config(self, folder: Path | None) -> Any:
        """SAELens' config of the run, which writes into `folder`."""
        fields = runner_fields(self.settings, folder)
        checkpoint_path = fields.pop("checkpoint_path")
        if "seqpos_slice" in fields:
            fields["seqpos_slice"] = tuple(fields["seqpos_slice"])
        with settings_accepted(), quiet():
            config: Any = with_no_secrets_told(LanguageModelSAERunnerConfig)(
                sae=replace(self.sae_config),
                model_name=self.settings.model_name,
                seed=self.settings.seed,
                dtype=self.sae_config.dtype,
                dataset_trust_remote_code=False,
                is_dataset_tokenized=False,  # which SAELens reads off the columns itself
                checkpoint_path=None,
                **fields,
            )
        config.checkpoint_path = checkpoint_path  # without the random folder that SAELens adds
        positions = trained_positions(config.context_size, config.seqpos_slice)
        if config.n_batches_in_buffer * positions < config.train_batch_size_tokens:
            raise PluginError(
                f"--n_batches_in_buffer {config.n_batches_in_buffer} is too small: times "
                f"{positions} tokens of a prompt it must hold the --train_batch_size_tokens "
                f"{config.train_batch_size_tokens}"
            )
        check_buffer(self.settings.data_shards, config.n_batches_in_buffer, positions)
        return config

    def prepare(self, folder: Path) -> Callable[[], dict[str, float]]:
        """Build SAELens' runner, with its SAE; the function that is returned runs it."""
        runner = self._runner(folder)
        seed_data(self.settings.seed)

        def run() -> dict[str, float]:
            with quiet():
                runner.run()
            if self.settings.data_shards > 1:
                self.tell_skipped()
            return {}

        return run

    def _runner(self, folder: Path) -> Any:
        with settings_accepted(), quiet():
            config = self.config(folder)
            sae: Any = None
            if config.from_pretrained_path:  # SAELens would take all else of it, too
                sae = TrainingSAE.from_dict(config.get_training_sae_cfg_dict())
                begin_with(sae, config.from_pretrained_path)
            runner: Any = LanguageModelSAETrainingRunner(
                config,
                override_dataset=self.text.train,
                override_model=self.model,
                override_sae=sae,
            )
            runner.sae.cfg.metadata.model_loaded_as = self.loaded_as
            self._narrow(runner.activations_store, heldout=False)
            if isinstance(self.text.train, Documents):
                watch(runner.activations_store, self.text.train, config)
            divisible(runner.activations_store, self._part)
            for name, value in self.settings.provenance.items():
                setattr(runner.sae.cfg.metadata, name, value)
            # SAELens' own evaluator reads on in the training text, so that logging would change
            # what the SAE is trained on.
            if self.text.heldout is None or not runner.cfg.logger.log_to_wandb:
                runner.evaluator = None
            else:
                runner.evaluator.activations_store = self._store(heldout=True)
                runner.evaluator = isolated(runner.evaluator)
        return runner

    def trainer(self, folder: Path) -> tuple[SAETrainer[Any, Any], Save]:
        """Build SAELens' runner, and its trainer in its stead."""
        runner = self._runner(folder)
        trainer = language_model_trainer(runner)

        def save(path: Path, sparsity: Tensor | None) -> None:
            runner.save_final_sae(trainer.sae, str(path), sparsity)

        return trainer, save

    def stream(self) -> Iterator[Tensor]:
        """The batches of a store over the training text."""
        with quiet():
            store = divisible(self._store(heldout=False), self._part)
            stream: Iterator[Any] = stream_of(store, self.settings.data_shards, self.settings.seed)
            return stream

    def unseen(self, tokens: int) -> list[Tensor]:
        """Activations of so many held-out tokens after those that score SAEs."""
        if self.text.heldout is None or self.cached is not None:
            return []
        with quiet(), isolated_random_state():
            store = self._store(heldout=True)
            found = tokens_after(store, self.settings.heldout_tokens, tokens)
        if (there := sum(map(len, found))) < tokens:
            logger.warning(
                "the held-out text has %d tokens beside the %d of --heldout_tokens, and %d are "
                "wanted to set thresholds on: %s; lower --heldout_tokens or --calibrate_tokens",
                *(there, self.settings.heldout_tokens, tokens),
                "these are taken" if there else "what follows in the training text is taken",
            )
        return found

    def heldout(self, saes: Sequence[SAE[Any]]) -> list[dict[str, float]]:
        """Held-out metrics of SAEs as they were saved, on the same text."""
        if ranks().size == 1:
            self.tell_skipped()
        if not self.settings.heldout_tokens:
            return [{} for _ in saes]
        with quiet(), isolated_random_state():
            store = self._store(heldout=True)
            return heldout_metrics(saes, store, self.settings.heldout_tokens)

    def tell_skipped(self) -> None:
        """Say once how many rows of the text that was read had none."""
        if isinstance(self.text.train, Documents):
            self.text.train.tell_skipped()

    def check_heldout(self) -> None:
        """Refuse held-out text that is less than the one batch that scoring starts with."""
        if self.text.heldout is None or self.cached is not None:
            return
        config = self.config(None)
        with settings_accepted(), quiet(), isolated_random_state():
            try:
                self._store(heldout=True).get_batch_tokens(raise_at_epoch_end=True)
            except StopIteration:
                raise PluginError(
                    f"the held-out text is less than --store_batch_size_prompts "
                    f"{config.store_batch_size_prompts} prompts of --context_size "
                    f"{config.context_size} tokens: lower them, or set --heldout_tokens 0"
                ) from None

    def _store(self, *, heldout: bool, shard: tuple[int, int] = (0, 1)) -> ActivationsStore:
        """A store over held-out text, or over shard `k` of `count` of the text to train on."""
        held, train = self.text.heldout, self.text.train
        rows = held if heldout and held is not None else train
        if shard[1] > 1 and self.cached is None:
            rows = split(rows, *shard)
        config = self.config(None)
        store = ActivationsStore.from_config(self.model, config, override_dataset=rows)
        if isinstance(rows, Documents):
            watch(store, rows, config)
        self._narrow(store, heldout, shard)
        return store

    def _part(self, k: int, count: int) -> ActivationsStore:
        return self._store(heldout=False, shard=(k, count))

    def _narrow(
        self, store: ActivationsStore, heldout: bool, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """Have a store read activations from where they are, and look at what it trains on."""
        if not heldout and not shard[0]:
            watch_special_tokens(store, self.settings)
        if self.cached is not None:
            self.cached.narrow(store, heldout, shard)
        elif self.activation_cache is not None:
            self.activation_cache.serve(store, heldout, shard[1])


def _activation_cache(settings: SAELensSettings, d_in: int) -> ActivationCache | None:
    """What keeps the run's activations, if anything does."""
    folder = settings.activation_cache
    return None if folder is None else ActivationCache(harvests(settings, d_in), folder)


def _with_commits(settings: SAELensSettings) -> SAELensSettings:
    """The settings, with the commits of what is read from the Hub as its revisions."""
    found = commits(settings.model_name, settings.runner)
    return replace(settings, runner={**settings.runner, **found})


def _with_local_sae(settings: SAELensSettings) -> SAELensSettings:
    """The settings, with the SAE to begin with downloaded if it is `USER/REPO:SAE_ID`."""
    from sae_plugins.base import hub

    name = "from_pretrained_path"
    source = settings.runner.get(name) or ""
    if ":" not in source:
        return settings
    with prefixed(f"--{name}"):
        return replace(settings, runner={**settings.runner, name: str(hub.local(source))})
