"""Runs on SAELens' synthetic models, with known features: `--model_name synthetic:toy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig
from sae_lens.synthetic.training import SyntheticActivationIterator
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_plugins.base import saelens
from sae_plugins.base.errors import PluginError
from sae_plugins.base.identity import Fact
from sae_plugins.base.seeds import isolated_random_state, seed_data
from sae_plugins.framework.architectures import architecture
from sae_plugins.resume.shards import divided
from sae_plugins.runs import weights_and_biases
from sae_plugins.runs.checks import check_devices
from sae_plugins.runs.folder import CONFIG, SPARSITY, WEIGHTS
from sae_plugins.runs.heldout import heldout_metrics
from sae_plugins.runs.memory import Need, check_memory, count_parameters, needs_of_sae
from sae_plugins.runs.setup import (
    SAELensSettings,
    Save,
    isolated,
    quiet,
    runner_fields,
    sae_config,
    settings_accepted,
)
from sae_plugins.runs.sources import made_from
from sae_plugins.world.synthetic_models import synthetic_model

HELDOUT_SEED = 1_000_003
"""Of the held-out samples, which are the same for every seed of training."""


class SyntheticSetup:
    """A `Setup` on one of `SYNTHETIC_MODELS`."""

    def __init__(self, settings: SAELensSettings) -> None:
        """Make the synthetic model and check the settings."""
        if settings.logger.get("log_to_wandb"):
            weights_and_biases.check()
        check_devices(settings)
        self.settings = settings
        self.model = synthetic_model(settings.model_name.partition(":")[2], settings.device)
        self.sae_config = sae_config(settings, self.model.cfg.hidden_dim)
        self.config(None)
        check_memory(self.needs())
        scored = settings.runner.get("run_final_eval", True) and settings.runner.get("eval_samples")
        row = architecture(settings.architecture)
        sparse = row.sparse and self.sae_config.use_sparse_activations
        if scored and (sparse or self.sae_config.dtype != "float32"):
            what = "--use_sparse_activations" if sparse else f"--dtype {self.sae_config.dtype}"
            raise PluginError(
                f"{what}: SAELens compares SAEs with the true features in dense float32 only; "
                "leave it out, or add --run_final_eval false"
            )

    def needs(self, is_there: bool = True) -> list[Need]:
        """What the run needs of memory."""
        return needs_of_sae(self.settings, self.sae_config)

    def parameters(self) -> dict[str, int]:
        """How many numbers the SAE has."""
        return {"SAE": count_parameters(self.sae_config)}

    @property
    def loaded_as(self) -> str:
        """SAELens makes its model."""
        return "SAELens' synthetic model"

    def sharing(self, settings: SAELensSettings) -> SyntheticSetup:
        """A setup with other settings; models are shared anyway."""
        return SyntheticSetup(settings)

    def plan_cache(self) -> None:
        """Nothing is kept: there is no language model."""

    def made_from(self) -> dict[str, Fact | None]:
        """What is known of the sources of the run, besides what is in memory."""
        return made_from(self.settings.model_name, {})

    def config(self, folder: Path | None) -> Any:
        """SAELens' config of the run, which writes into `folder`."""
        fields = runner_fields(self.settings, folder)
        names = saelens.SYNTHETIC_NAMES
        fields = {names.get(name, name): value for name, value in fields.items()}
        with settings_accepted():
            config: Any = saelens.with_no_secrets_told(SyntheticSAERunnerConfig)(
                synthetic_model=self.model.cfg, sae=replace(self.sae_config), **fields
            )
        # SAELens evaluates after so many logged steps, whatever its eval_frequency is
        logged = config.logger.wandb_log_frequency
        if config.eval_frequency % logged:
            raise PluginError(
                f"--eval_frequency {config.eval_frequency} must be a multiple of the "
                f"--wandb_log_frequency, which is {logged}"
            )
        config.logger.eval_every_n_wandb_logs = max(1, config.eval_frequency // logged)
        return config

    def prepare(self, folder: Path) -> Callable[[], dict[str, float]]:
        """Build SAELens' runner, with its SAE; the function that is returned runs it."""
        runner = self._runner(folder)
        # it draws samples from the global random state, as the training does
        saelens.wrap_evaluator(runner, isolated)
        if runner.cfg.logger.log_to_wandb:

            def log(path: Path) -> None:
                weights = [WEIGHTS] if runner.cfg.logger.log_weights_to_wandb else []
                files = [path / name for name in (*weights, CONFIG, SPARSITY)]
                weights_and_biases.log_sae(files, runner.sae.get_name())

            saelens.call_when_saved(runner, log)
        seed_data(self.settings.seed)

        def run() -> dict[str, float]:
            with quiet():
                evaluation = runner.run().final_eval
            return {} if evaluation is None else _numbers(evaluation.to_log_dict(prefix="truth/"))

        return run

    def _runner(self, folder: Path) -> Any:
        with settings_accepted(), quiet():
            runner: Any = SyntheticSAERunner(
                self.config(folder), override_synthetic_model=self.model
            )
        runner.sae.cfg.metadata.model_name = self.settings.model_name
        return runner

    def trainer(self, folder: Path) -> tuple[SAETrainer[Any, Any], Save]:
        """Build SAELens' runner, and its trainer in its stead."""
        runner = self._runner(folder)
        trainer = saelens.trainer_of(runner)

        def save(path: Path, sparsity: Tensor | None) -> None:
            saelens.save_synthetic(runner, path, trainer.sae, sparsity)

        return trainer, save

    def stream(self) -> Iterator[Tensor]:
        """Batches of samples."""
        config = self.config(None)
        samples = SyntheticActivationIterator(
            self.model.feature_dict,
            self.model.activation_generator,
            config.batch_size,
            config.autocast_data,
        )
        divided_samples: Iterator[Tensor] = divided(
            samples, self.settings.data_shards, self.settings.seed
        )
        return divided_samples

    def tell_skipped(self) -> None:
        """Nothing is skipped."""

    def unseen(self, tokens: int) -> list[Tensor]:
        """None: the samples that follow those of the training are as good."""
        return []

    def heldout(self, saes: Sequence[SAE[Any]]) -> list[dict[str, float]]:
        """Held-out metrics of SAEs as they were saved, on the same fresh samples."""
        if not self.settings.heldout_tokens:
            return [{} for _ in saes]
        with isolated_random_state():
            torch.manual_seed(HELDOUT_SEED)
            return heldout_metrics(saes, _Samples(self.model), self.settings.heldout_tokens)


class _Samples:
    """Fresh samples where `heldout_metrics` expects a store of activations."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Tensor:
        samples: Tensor = self.model.sample(4096)
        return samples


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))
    }
