"""Runs on SAELens' synthetic models, with known features: `--model_name synthetic:toy`."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import PluginError
from sae_plugins.runs import weights_and_biases
from sae_plugins.runs.folder import CONFIG, SPARSITY, WEIGHTS

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.synthetic import LowRankCorrelationMatrix, SyntheticModel, SyntheticModelConfig
    from sae_lens.training.sae_trainer import SAETrainer
    from torch import Tensor

    from sae_plugins.runs.job import JobSettings, Save

SYNTHETIC = "synthetic:"
"""How the names of synthetic models begin."""
HELDOUT_SEED = 1_000_003
"""Of the held-out samples, which are the same for every seed of training."""


def toy(device: str = "cpu") -> SyntheticModel:
    """96 features in 48 dimensions: 16 parents with 3 children each, and 32 that stand alone.

    A child fires only where its parent does, and never together with a sibling: the bait for
    absorption. Parents fire on 17 to 20% of samples, a third of the times with a child; those that
    stand alone on 2 to 8%. The first 16 of these are 8 pairs: where one fires, the other one does
    in six of ten cases. It is the toy of the project's studies.
    """
    import torch
    from sae_lens.synthetic import (
        HierarchyConfig,
        LinearFiringProbabilityConfig,
        LowRankCorrelationMatrix,
        OrthogonalizationConfig,
        SyntheticModelConfig,
    )

    config = SyntheticModelConfig(
        num_features=96,
        hidden_dim=48,
        # parents first, then children, whose probabilities are those given their parent
        firing_probability=LinearFiringProbabilityConfig(max_prob=0.2, min_prob=0.02),
        hierarchy=HierarchyConfig(
            total_root_nodes=16, branching_factor=3, max_depth=1, mutually_exclusive_portion=1.0
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100),
        mean_firing_magnitudes=1.0,
        std_firing_magnitudes=0.3,
        bias=False,
        seed=0,
    )
    # SAELens' config has random correlations of all features only; its model takes a matrix
    factor = torch.zeros(96, 8, device=device)
    pair = torch.arange(8)
    factor[64 + 2 * pair, pair] = factor[65 + 2 * pair, pair] = 0.9**0.5
    return _build(config, device, LowRankCorrelationMatrix(factor, 1 - factor.square().sum(dim=1)))


def small(device: str = "cpu") -> SyntheticModel:
    """256 independent features in 64 dimensions, whose frequencies follow Zipf's law."""
    from sae_lens.synthetic import (
        OrthogonalizationConfig,
        SyntheticModelConfig,
        ZipfianFiringProbabilityConfig,
    )

    config = SyntheticModelConfig(
        num_features=256,
        hidden_dim=64,
        firing_probability=ZipfianFiringProbabilityConfig(max_prob=0.3, min_prob=0.005),
        orthogonalization=OrthogonalizationConfig(num_steps=100),
        mean_firing_magnitudes=1.0,
        std_firing_magnitudes=0.2,
        bias=False,
        seed=0,
    )
    return _build(config, device)


def _build(
    config: SyntheticModelConfig, device: str, correlation: LowRankCorrelationMatrix | None = None
) -> SyntheticModel:
    """SAELens' model, without the progress bar that it draws for every one."""
    from sae_lens.synthetic import SyntheticModel

    with contextlib.redirect_stderr(io.StringIO()):
        return SyntheticModel(config, correlation_matrix=correlation, device=device)


PRESETS: dict[str, Callable[[str], SyntheticModel]] = {"toy": toy, "small": small}
"""Synthetic models by name. Their own seed is fixed; `--seed` is the training's."""


@functools.cache
def synthetic_model(preset: str, device: str) -> SyntheticModel:
    """The model of a preset, made once, which takes seconds."""
    return PRESETS[preset](device)


class SyntheticJob:
    """A `Job` on one of `PRESETS`."""

    def __init__(self, settings: JobSettings) -> None:
        """Make the synthetic model and check the settings."""
        from sae_plugins.runs.job import check_devices, check_memory, sae_config

        if settings.logger.get("log_to_wandb"):
            weights_and_biases.check()
        check_devices(settings)
        self.settings = settings
        self.model = synthetic_model(settings.model_name.partition(":")[2], settings.device)
        self.sae_config = sae_config(settings, self.model.cfg.hidden_dim)
        self.config(None)
        check_memory(settings, self.sae_config, {})
        scored = settings.runner.get("run_final_eval", True) and settings.runner.get("eval_samples")
        sparse = settings.architecture == "topk" and self.sae_config.use_sparse_activations
        if scored and (sparse or self.sae_config.dtype != "float32"):
            what = "--use_sparse_activations" if sparse else f"--dtype {self.sae_config.dtype}"
            raise PluginError(
                f"{what}: SAELens compares SAEs with the true features in dense float32 only; "
                "leave it out, or add --run_final_eval false"
            )

    def sharing(self, settings: JobSettings) -> SyntheticJob:
        """A job with other settings; models are shared anyway."""
        return SyntheticJob(settings)

    def config(self, folder: Path | None) -> Any:
        """SAELens' config of the run, which writes into `folder`."""
        from dataclasses import replace

        from sae_lens.synthetic import SyntheticSAERunnerConfig

        from sae_plugins.runs.job import runner_fields, settings_accepted

        renamed = {
            "training_tokens": "training_samples",
            "train_batch_size_tokens": "batch_size",
            "autocast": "autocast_sae",
        }
        fields = runner_fields(self.settings, folder)
        fields = {renamed.get(name, name): value for name, value in fields.items()}
        fields.pop("verbose", None)
        with settings_accepted():
            return SyntheticSAERunnerConfig(
                synthetic_model=self.model.cfg, sae=replace(self.sae_config), **fields
            )

    def prepare(self, folder: Path) -> Callable[[], dict[str, float]]:
        """Build SAELens' runner, with its SAE; the function that is returned runs it."""
        from sae_plugins.base.seeds import seed_data
        from sae_plugins.runs.job import isolated, quiet

        runner = self._runner(folder)
        create = runner._create_evaluator
        # it draws samples from the global random state, as the training does
        runner._create_evaluator = lambda: isolated(create())
        if runner.cfg.logger.log_to_wandb:
            save = runner._save_outputs

            def save_and_log(path: Path, *outputs: Any) -> None:
                save(path, *outputs)
                files = [path / name for name in (WEIGHTS, CONFIG, SPARSITY)]
                weights_and_biases.log_sae(files, runner.sae.get_name())

            runner._save_outputs = save_and_log
        seed_data(self.settings.seed)

        def run() -> dict[str, float]:
            with quiet():
                evaluation = runner.run().final_eval
            return {} if evaluation is None else _numbers(evaluation.to_log_dict(prefix="truth/"))

        return run

    def _runner(self, folder: Path) -> Any:
        from sae_lens.synthetic import SyntheticSAERunner

        from sae_plugins.runs.job import quiet, settings_accepted

        with settings_accepted(), quiet():
            runner: Any = SyntheticSAERunner(
                self.config(folder), override_synthetic_model=self.model
            )
        runner.sae.cfg.metadata.model_name = self.settings.model_name
        return runner

    def trainer(self, folder: Path) -> tuple[SAETrainer[Any, Any], Save]:
        """Build SAELens' runner, and its trainer in its stead."""
        from sae_plugins.runs.job import trainer_of

        runner = self._runner(folder)
        trainer = trainer_of(runner)

        def save(path: Path, sparsity: Tensor | None) -> None:
            runner._save_outputs(path, trainer.sae, sparsity, None)

        return trainer, save

    def stream(self) -> Iterator[Tensor]:
        """Batches of samples."""
        from sae_lens.synthetic.training import SyntheticActivationIterator

        config = self.config(None)
        return SyntheticActivationIterator(
            self.model.feature_dict,
            self.model.activation_generator,
            config.batch_size,
            config.autocast_data,
        )

    def heldout(self, saes: Sequence[SAE[Any]]) -> list[dict[str, float]]:
        """Held-out metrics of SAEs as they were saved, on the same fresh samples."""
        import torch

        from sae_plugins.runs.heldout import heldout_metrics
        from sae_plugins.runs.job import isolated_random_state

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
