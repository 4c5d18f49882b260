"""Every way in which SAELens trains gets the plugins, by the one context manager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    train_toy_sae,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.testing import D_IN, tiny_batches, tiny_sae

QUIET = LoggingConfig(log_to_wandb=False)
HOOK = "blocks.0.hook_resid_post"


class Counter(Plugin):
    """Counts steps, and leaves a mark on the weights and in the saved SAE."""

    name = "counter"
    all: list[Any] = []

    @hookimpl
    def attached(self) -> None:
        self.steps, self.ended = 0, False
        type(self).all.append(self)

    @hookimpl
    def step_ended(self) -> None:
        self.steps += 1

    @hookimpl
    def after_update(self, run: Any) -> None:
        run.sae.b_dec.data.fill_(0.5)

    @hookimpl
    def training_ended(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def counters(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plugin instances that a runner's trainers made."""
    monkeypatch.setattr(Counter, "all", [])
    return Counter.all


def expect(instances: list[Any], saes: list[Any], steps: int) -> None:
    assert [(plugin.steps, plugin.ended) for plugin in instances] == [(steps, True)] * len(saes)
    for sae in saes:
        assert (sae.b_dec == 0.5).all()
        assert sae.cfg.metadata.sae_plugins["plugins"][0]["name"] == "counter"


def language_model() -> tuple[HookedTransformer, IterableDataset]:
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=1,
        d_model=D_IN,
        d_head=4,
        n_heads=2,
        d_mlp=8,
        n_ctx=16,
        d_vocab=20,
        act_fn="relu",
    )
    tokens = torch.randint(20, (512, 16)).tolist()
    return HookedTransformer(config), Dataset.from_dict({"tokens": tokens}).to_iterable_dataset()


def llm_settings(**settings: Any) -> dict[str, Any]:
    return {
        "model_name": "tiny",
        "dataset_path": "none",
        "context_size": 16,
        "training_tokens": 256,
        "train_batch_size_tokens": 32,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 4,
        "prepend_bos": False,
        "streaming": True,
        "checkpoint_path": None,
        "output_path": None,
        "logger": QUIET,
    } | settings


def test_language_model_runner(counters: list[Any], tmp_path: Any) -> None:
    model, dataset = language_model()
    config = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=16),
        hook_name=HOOK,
        **llm_settings(output_path=str(tmp_path)),
    )
    with plugins(Counter):
        runner = LanguageModelSAETrainingRunner(
            config, override_model=model, override_dataset=dataset
        )
        sae = runner.run()
    expect(counters, [sae], 8)
    assert (tmp_path / "cfg.json").exists()


def test_multi_sae_runner(counters: list[Any]) -> None:
    model, dataset = language_model()
    config = MultiSAETrainingRunnerConfig(
        saes={
            "l1": StandardTrainingSAEConfig(d_in=D_IN, d_sae=16),
            "topk": TopKTrainingSAEConfig(d_in=D_IN, d_sae=24, k=4),
        },
        hook_names=HOOK,
        **llm_settings(),
    )
    with plugins(Counter):
        runner = MultiSAETrainingRunner(config, override_model=model, override_dataset=dataset)
        saes = runner.run()
    expect(counters, list(saes.values()), 8)


def test_multi_sae_trainer(counters: list[Any]) -> None:
    saes = {"a": tiny_sae("standard"), "b": tiny_sae("jumprelu")}
    config = SAETrainerConfig(
        total_training_samples=128, train_batch_size_samples=32, lr_end=1e-4, logger=QUIET
    )
    batches = ({"here": batch} for batch in tiny_batches(steps=4))
    with plugins(Counter):
        MultiSAETrainer(config, saes, dict.fromkeys(saes, "here"), batches).fit()
    expect(counters, list(saes.values()), 4)


def test_synthetic_runner(counters: list[Any]) -> None:
    config = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=16, hidden_dim=D_IN),
        sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=16),
        training_samples=128,
        batch_size=32,
        output_path=None,
        checkpoint_path=None,
        run_final_eval=False,
        logger=QUIET,
    )
    with plugins(Counter):
        result = SyntheticSAERunner(config).run()
    expect(counters, [result.sae], 4)


def test_toy_trainer(counters: list[Any]) -> None:
    sae = tiny_sae("standard")
    generator = ActivationGenerator(16, 0.2)
    with plugins(Counter):
        train_toy_sae(sae, FeatureDictionary(16, D_IN), generator, 128, 32)
    expect(counters, [sae], 4)
