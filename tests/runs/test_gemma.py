"""The Gemma-2-2B recipes, on models of its architecture with random weights: no downloads.

`sae-plugins train` runs as it would, up to a few steps; only the weights and the text are made up.
The default run has a model of 2 narrow layers, the slow one the first 20 of Gemma-2-2B as they are.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from datasets import Dataset
from language_models import Given
from sae_lens import StandardSAE, StandardSAEConfig
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import get_pretrained_model_config

from sae_plugins import recipes, world
from sae_plugins.entrypoints.main import main
from sae_plugins.framework.resolve import TrainingSettings
from sae_plugins.framework.trainer import PluginTrainer
from sae_plugins.runs import language_model
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.texts import splits

CONTEXT, STEPS = 128, 4882
NARROW = {"d_model": 32, "d_head": 8, "n_heads": 4, "n_key_value_heads": 2, "d_mlp": 64}
NARROW |= {"d_vocab": 500, "d_vocab_out": 500, "n_ctx": CONTEXT, "rotary_dim": 8}
NARROW_FLAGS = (
    "--hook_name blocks.1.hook_resid_post --d_in 32 --d_sae 32 "
    "--store_batch_size_prompts 4 --n_batches_in_buffer 32"
)
EXACT_FLAGS = (
    f"--train_batch_size_tokens {CONTEXT} --training_tokens {STEPS * CONTEXT} "
    "--store_batch_size_prompts 2 --n_batches_in_buffer 4 --heldout_tokens 1000"
)
"""The CPU has not all day."""


@dataclass(frozen=True)
class Paper:
    """What a recipe must come to: the paper's run.

    Attributes:
        training: the loop's settings.
        l1: coefficient of the L1 loss; None if there is none.
        rates: learning rate at some steps, counted from 1.
        options: options of mechanisms.
        fields: of SAELens' configs, of the SAE's and of the trainer's.
        dataset: on the Hugging Face Hub.
    """

    training: TrainingSettings
    l1: float | None
    rates: dict[int, float]
    options: dict[str, dict[str, Any]]
    fields: dict[str, Any]
    dataset: str = "monology/pile-uncopyrighted"
    heldout_tokens: int = 50_000


COSINE = {1500: 1.5e-4, 3000: 3e-4, 3000 + 941: 1.5e-4, STEPS: 0.0}
WARM_UP = {500: 1.5e-4, 1000: 3e-4, STEPS: 3e-4}
BASELINE = Paper(
    TrainingSettings(), 0.04, WARM_UP, {}, {"dtype": "float32", "apply_b_dec_to_input": True}
)
PAPERS = {
    "baseline-l1": BASELINE,
    "baseline-topk": Paper(TrainingSettings(), None, WARM_UP, {}, {"k": 320}),
    "baseline-batchtopk": Paper(
        TrainingSettings(calibrate_threshold=True), None, WARM_UP, {}, {"k": 320}
    ),
    "hybrid-order": Paper(
        TrainingSettings(accumulate=4, clip=1.0, loss_form="sum_of_squares"),
        0.04,
        COSINE,
        {
            "reorder": {"interval": 500, "start": 2000, "window": 10}
            | {"threshold": 3.0, "unit": "mean", "look": None},
            "input-norm-l1": {"decay": 0.99, "per": "token"},
            "unit-norm-decoder": {"project": True},
        },
        {"dtype": "float32", "apply_b_dec_to_input": True, "autocast": False},
    ),
    "hierarchical": Paper(
        TrainingSettings(clip=1.0, weight_decay=0.01, loss_form="sum_of_squares"),
        2304**-0.5,
        {500: 3e-4, STEPS: 3e-4},
        {
            "linear-l1": {"floor": 0.0},
            "reconstruction-l1": {"least": 0.1, "greatest": 2.0, "unit": "fvu"},
            "firing-window": {"window": 100},
            "resample": {"threshold": 0.01, "rule": "window"},
            "merge": {"every": 100, "threshold": 0.9, "arithmetic": "average"},
            "unit-norm-decoder": {"project": True},
        },
        {"dtype": "float32", "apply_b_dec_to_input": False, "autocast": False},
        dataset="Skylion007/openwebtext",
        heldout_tokens=100_000,
    ),
    "adaptive-threshold": Paper(
        TrainingSettings(weight_decay=0.01, loss_form="l2_norm"),
        0.04,
        WARM_UP,
        {
            "firing-frequency": {"decay": 0.999, "bias_correction": True},
            "importance": {"step": "this"},
            "activation-threshold": {"base": 0.3, "sensitivity": 1.0, "unit": "activation"},
            "decoder-orthogonality": {"weight": 0.1, "weighting": "importance", "reduction": "sum"},
            "reconstruction-warm-up": {"steps": 1000},
            "unit-norm-decoder": {"project": False},
        },
        {"dtype": "float32", "apply_b_dec_to_input": False, "autocast": True},
    ),
    "adaptive-orthogonality": Paper(
        TrainingSettings(clip=1.0, weight_decay=0.01, loss_form="l2_norm"),
        0.04,
        {500: 4.5e-4, 1000: 9e-4, STEPS: 9e-4},
        {
            "coactivation-penalty": {
                **{"fraction": 0.005, "tau": 0.05, "tau_min": 0.01, "tau_max": 0.2},
                **{"adaptive": True, "gain": 1.0, "target": None, "target_share": 0.9},
            },
            "unit-norm-decoder": {"project": False},
        },
        {"dtype": "float32", "apply_b_dec_to_input": True, "autocast": True},
    ),
}
LOSS_FORMS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    "l2_norm": lambda error: error.norm(dim=1).mean(),
    "sum_of_squares": lambda error: error.square().sum(dim=1).mean(),
}
LOSS_FORMS[None] = LOSS_FORMS["sum_of_squares"]


def gemma(layers: int, **changes: Any) -> HookedTransformer:
    """The first layers of Gemma-2-2B as TransformerLens knows it, with random weights."""
    config = get_pretrained_model_config("gemma-2-2b", fold_ln=False).to_dict()
    config |= {"n_layers": layers, "attn_types": config["attn_types"][:layers]}
    config |= {"init_weights": True, "tokenizer_name": None, "seed": 0, **changes}
    with torch.random.fork_rng(devices=[]):
        return HookedTransformer(HookedTransformerConfig.from_dict(config))


@functools.cache
def text(vocabulary: int) -> Dataset:
    """Documents of a context each, more than any recipe holds out."""
    tokens = np.random.default_rng(0).integers(3, vocabulary, size=(2000, CONTEXT))
    return Dataset.from_dict({"tokens": tokens.tolist()})


CLOSE = {"rtol": 0.02, "atol": 1e-3}
"""For products in bfloat16."""


class Enough(BaseException):
    """Raised by the step after the last that a test wants."""


@dataclass
class Began:
    """A run of `sae-plugins train` that was stopped."""

    trainer: PluginTrainer
    settings: SAELensSettings
    outputs: list[Any]

    def learning_rates(self) -> dict[int, float]:
        """Of all steps to come, by going on with SAELens' scheduler alone."""
        rates = {}
        for step in range(self.trainer.n_training_steps + 1, STEPS + 1):
            (group,) = self.trainer.optimizer.param_groups
            rates[step] = group["lr"]
            self.trainer.lr_scheduler.step()
        return rates


def begin(recipe: str, model: HookedTransformer, flags: str, folder: Path, steps: int) -> Began:
    """Train a recipe for some steps of its run, on a model in Gemma-2-2B's place."""
    began: list[Began] = []
    given: list[SAELensSettings] = []
    step = PluginTrainer.step

    def limited(trainer: PluginTrainer, batch: torch.Tensor) -> Any:
        if not began:
            began.append(Began(trainer, given[0], []))
        if len(began[0].outputs) == steps:
            raise Enough
        output = step(trainer, batch)
        began[0].outputs.append(output)
        return output

    def model_loader(settings: SAELensSettings) -> Given:
        given.append(settings)
        return Given(model)

    command = f"train --recipe {recipe} --device cpu {flags} --output_path {folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "model_loader", model_loader)
        patch.setattr(language_model, "commits", lambda *_: {})  # nobody asks the Hub
        patch.setattr(splits, "load_rows", lambda _: text(model.cfg.d_vocab))
        patch.setattr(PluginTrainer, "step", limited)
        with pytest.raises(Enough):
            main(command.split())
    return began[0]


def check(began: Began, paper: Paper, steps: int) -> None:
    """What was built is the paper's run, and its first steps are sound."""
    trainer, runner = began.trainer, began.settings.runner
    assert (began.settings.model_name, runner["dataset_path"]) == ("gemma-2-2b", paper.dataset)
    assert (began.settings.seed, began.settings.heldout_tokens) == (42, paper.heldout_tokens)
    assert runner["context_size"] == CONTEXT
    assert trainer.cfg.total_training_steps == STEPS
    assert trainer.sae.cfg.normalize_activations == "none"
    assert trainer.activation_scaler.scaling_factor is None
    assert trainer.plan.training == paper.training
    if paper.l1 is None:
        assert "l1" not in trainer.get_coefficients()
    else:
        assert trainer.get_coefficients()["l1"] == pytest.approx(paper.l1, rel=1e-4)
    for name, value in paper.fields.items():
        owner = trainer.sae.cfg if hasattr(trainer.sae.cfg, name) else trainer.cfg
        assert getattr(owner, name) == value, name
    kwargs = runner.get("model_from_pretrained_kwargs")
    assert kwargs == ({"dtype": "bfloat16"} if paper.fields.get("autocast") else None)
    options = {plugin.name: plugin.options.model_dump() for plugin in trainer.host.plugins}
    for plugin, expected in paper.options.items():
        assert options[plugin] == options[plugin] | expected
    assert options.keys() == {*paper.options, "nan-guard", "recorder"}
    check_steps(began, paper, steps)
    rates = began.learning_rates()
    for at, rate in paper.rates.items():
        assert rates[at] == pytest.approx(rate, rel=5e-3, abs=1e-9), at


def check_steps(began: Began, paper: Paper, steps: int) -> None:
    """The losses are those of the paper's form, and the weights moved as often as they should."""
    trainer = began.trainer
    weights = trainer.sae.W_dec
    assert len(began.outputs) == steps
    assert trainer.run.updates == steps // paper.training.accumulate
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    if "unit-norm-decoder" in paper.options:
        torch.testing.assert_close(weights.float().norm(dim=1), torch.ones(len(weights)), **CLOSE)
    for output in began.outputs:
        error = output.sae_out.float() - output.sae_in.float()
        expected = LOSS_FORMS[paper.training.loss_form](error)
        torch.testing.assert_close(output.losses["mse_loss"].float(), expected, **CLOSE)


def test_every_gemma_recipe_has_a_paper() -> None:
    of_gemma = {name for name in recipes.names() if not name.endswith("-demo")}
    assert of_gemma == {*PAPERS, "gemma-2-2b"}  # which the others extend


@functools.cache
def narrow() -> HookedTransformer:
    return gemma(2, **NARROW)


@pytest.mark.parametrize("recipe", PAPERS)
def test_a_recipe_is_the_papers_run(recipe: str, tmp_path: Path) -> None:
    paper, flags = PAPERS[recipe], NARROW_FLAGS
    if "k" in paper.fields:
        paper, flags = replace(paper, fields={**paper.fields, "k": 8}), f"{flags} --k 8"
    check(begin(recipe, narrow(), flags, tmp_path / "run", steps=4), paper, steps=4)


@pytest.mark.slow
def test_the_recipes_train_at_the_exact_shape(tmp_path: Path) -> None:
    model = gemma(20, dtype=torch.bfloat16)
    remember(model)
    for recipe, paper in PAPERS.items():
        began = begin(recipe, model, EXACT_FLAGS, tmp_path / recipe, steps=4)
        check(began, replace(paper, heldout_tokens=1000), steps=4)
        assert began.trainer.sae.W_dec.shape == (2304, 2304)


def remember(model: HookedTransformer) -> None:
    """Let the model read each prompt once: the recipes have their text in common."""
    run, read = model.run_with_cache, {}

    def run_with_cache(tokens: torch.Tensor, **arguments: Any) -> Any:
        key = tokens.numpy().tobytes()
        if key not in read:
            read[key] = run(tokens, **arguments)
        return read[key]

    model.run_with_cache = run_with_cache


# -- evaluation ------------------------------------------------------------------------------------

CORE = (
    "--suite core --core.n_eval_reconstruction_batches 1 --core.n_eval_sparsity_variance_batches 1"
)


def untrained_sae(folder: Path, d_in: int, layer: int) -> Path:
    config = StandardSAEConfig(d_in=d_in, d_sae=2 * d_in)
    config.metadata.model_name = "gemma-2-2b"
    config.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    config.metadata.prepend_bos = True
    sae = StandardSAE(config)
    with torch.no_grad():
        sae.W_dec.normal_()
        sae.W_enc.copy_(sae.W_dec.T)
    sae.save_model(folder)
    return folder


def evaluate(
    model: HookedTransformer, sae: Path, flags: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """`sae-plugins evaluate`, on a model and a text that are made up; the result."""
    from sae_plugins.runs.language_models import choice

    model.set_tokenizer(world.load_tokenizer())
    monkeypatch.setattr(choice, "loader_of", lambda name, *_: Given(model, name))
    out = sae.parent / "evaluations"
    arguments = f"evaluate {sae} {CORE} --data world --output_path {out} --device cpu {flags}"
    assert main([*arguments.split(), "--cache_path", str(sae.parent / "cache")]) == 0
    (file,) = out.glob("*/core-seed42-????????.json")
    return dict(json.loads(file.read_text()))


def test_core_on_gemmas_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gemma(2, **{**NARROW, **vocabulary_of_the_world()})
    sae = untrained_sae(tmp_path / "sae", NARROW["d_model"], 1)
    result = evaluate(model, sae, "--core.batch_size_prompts 2 --core.context_size 16", monkeypatch)
    assert result["model"] == {
        "name": "gemma-2-2b", "hash": ANY, "dtype": "bfloat16", "loaded_as": Given.kind,
    }  # fmt: skip
    assert result["metrics"]["ce_loss_without_sae"]["value"] > 5


@pytest.mark.slow  # minutes, and 11 GB
def test_core_on_gemmas_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gemma(26, dtype=torch.bfloat16)
    sae = untrained_sae(tmp_path / "sae", 2304, 19)
    flags = "--core.batch_size_prompts 1 --core.context_size 16"
    result = evaluate(model, sae, flags, monkeypatch)
    assert result["sae"]["hook_name"] == "blocks.19.hook_resid_post"
    assert result["metrics"]["l0"]["value"] > 0


@pytest.mark.parametrize("preset", [pytest.param("canonical", marks=pytest.mark.ci), "paper"])
def test_dry_run_for_gemma(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what it takes, without the model and the network."""
    sae = untrained_sae(tmp_path / "sae", 2304, 19)
    out = tmp_path / "evaluations"
    flags = f"--preset {preset} --dry_run --output_path {out} --device cpu"
    assert main(["evaluate", str(sae), *flags.split()]) == 0
    said = capsys.readouterr().out
    assert "GB" in said
    assert not out.exists()


def vocabulary_of_the_world() -> dict[str, int]:
    size = len(world.load_tokenizer())
    return {"d_vocab": size, "d_vocab_out": size}
