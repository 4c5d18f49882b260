"""One test per seam of SAELens that we rely on, as `sae_plugins.base.saelens` lists them.

A failure here means that SAELens moved something: mend what uses the seam, then the list.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import expected
import language_models
import pytest
import torch
from datasets import Dataset, IterableDataset
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETransformerBridge,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    llm_sae_training_runner,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata, TrainingSAE, TrainingSAEConfig, TrainStepInput
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
)
from sae_lens.synthetic.training import SyntheticActivationIterator
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge

from sae_plugins import plugins
from sae_plugins.base import saelens as upstream
from sae_plugins.base.saelens import ADAM_MOMENTS, TRAINER_COUNTERS
from sae_plugins.base.seeds import random_states, set_random_states
from sae_plugins.framework.architectures import ARCHITECTURES, HAVING_A_FAST_STEP, architecture_of
from sae_plugins.framework.counters import COUNTERS
from sae_plugins.runs import setup as jobs
from sae_plugins.runs.language_models.hugging_face import Bridge
from sae_plugins.testing import (
    CASES,
    D_IN,
    D_SAE,
    STEPS,
    TOKENS,
    advance,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
)

HOOK = "blocks.0.hook_resid_post"
NORMALIZATIONS = get_args(get_type_hints(TrainingSAEConfig)["normalize_activations"])


def seam(beginning: str) -> Callable[[Any], Any]:
    """Name the entry of the list, by its beginning, that a test is about."""
    return lambda test: test


def test_every_seam_of_the_list_has_its_test() -> None:
    listed = re.findall(r"^- (.*(?:\n  .*)*)", upstream.__doc__ or "", re.M)
    here = Path(__file__)
    text = (
        here.read_text() + here.parents[1].joinpath("resume", "test_saelens_stream.py").read_text()
    )
    tested = re.findall(r"^@seam\([\"'](.+)[\"']\)$", text, re.M)
    assert len(listed) == len(tested)
    for entry, beginning in zip(listed, tested, strict=True):
        assert entry.startswith(beginning), f"the list says {entry!r}, the tests {beginning!r}"


@seam("`SAETrainer(cfg, sae, data_provider, evaluator, save_checkpoint_fn)`")
def test_runners_build_their_trainer_through_the_class() -> None:
    import sae_lens.llm_sae_training_runner
    import sae_lens.synthetic.synthetic_sae_runner
    import sae_lens.synthetic.training
    import sae_lens.training.multi_sae_trainer

    parameters = ["self", "cfg", "sae", "data_provider", "evaluator", "save_checkpoint_fn"]
    assert list(inspect.signature(SAETrainer.__init__).parameters) == parameters
    for module in (
        sae_lens.llm_sae_training_runner,
        sae_lens.synthetic.synthetic_sae_runner,
        sae_lens.synthetic.training,
        sae_lens.training.multi_sae_trainer,
    ):
        assert module.SAETrainer is SAETrainer
        assert re.search(r"\bSAETrainer(\[.*\])?\(", inspect.getsource(module)), module.__name__
    with plugins():
        pass  # raises if SAELens has given the class a __new__ of its own


@seam("`SAETrainer.step`, `load_trainer_state`, `set_final_sae_metadata`, `save_checkpoint`")
def test_public_seams_of_the_trainer() -> None:
    for name, parameters in {
        "step": ["self", "batch"],
        "load_trainer_state": ["self", "checkpoint_path"],
        "set_final_sae_metadata": ["self"],
        "save_checkpoint": ["self", "checkpoint_name", "base_path", "wandb_aliases"],
    }.items():
        assert list(inspect.signature(getattr(SAETrainer, name)).parameters) == parameters


def multi_trainer(batches: Any, **config: Any) -> MultiSAETrainer:
    saes = {"a": tiny_sae("standard"), "b": tiny_sae("topk")}
    fields = {
        "total_training_samples": 4 * TOKENS,
        "train_batch_size_samples": TOKENS,
        "lr_end": 1e-4,
        "logger": LoggingConfig(log_to_wandb=False),
        **config,
    }
    provider = ({"here": batch} for batch in batches)
    return MultiSAETrainer(SAETrainerConfig(**fields), saes, dict.fromkeys(saes, "here"), provider)


@seam("`SAETrainer.maybe_reset_sparsity` is called by `fit` and `MultiSAETrainer`")
def test_when_a_step_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    reset = SAETrainer.maybe_reset_sparsity

    def watched(self: Any) -> Any:
        events.append((type(self.sae).__name__, self.n_training_steps))
        return reset(self)

    def pulled() -> Iterator[torch.Tensor]:
        for batch in tiny_batches(steps=2):
            events.append("pulled")
            yield batch

    monkeypatch.setattr(SAETrainer, "maybe_reset_sparsity", watched)
    trainer = tiny_trainer(tiny_sae("standard"), total_training_samples=2 * TOKENS)
    trainer.data_provider = pulled()
    trainer.fit()
    standard, topk = "StandardTrainingSAE", "TopKTrainingSAE"
    assert events == [(standard, 0), "pulled", (standard, 1), "pulled"]
    events.clear()
    multi_trainer(pulled(), total_training_samples=2 * TOKENS).fit()
    each = [[(standard, step), (topk, step), "pulled"] for step in range(2)]
    assert events == [*each[0], *each[1]]


@seam("the attributes of a `SAETrainer` are those that `PluginTrainer.state_dict` covers")
def test_the_attributes_of_a_trainer() -> None:
    trainer = tiny_trainer(tiny_sae("standard"))
    given = {"cfg", "sae", "data_provider", "evaluator", "save_checkpoint_fn"}
    made_from_the_config = {"autocast_if_enabled"}
    with_state = {"optimizer", "lr_scheduler", "coefficient_schedulers", "activation_scaler"}
    assert vars(trainer).keys() == given | made_from_the_config | with_state | {*COUNTERS}
    advance(trainer, tiny_batches(steps=2))
    assert vars(trainer).keys() == given | made_from_the_config | with_state | {*COUNTERS}
    assert vars(trainer.activation_scaler).keys() == {"scaling_factor", "whitening"}
    (scheduler,) = trainer.coefficient_schedulers.values()
    assert vars(scheduler).keys() == {
        *("warm_up_steps", "final_value"),  # from the config
        *("current_step", "current_value"),  # the second follows from the first
    }


@seam("`SAETrainer.checkpoint_thresholds` loses one per step at most")
def test_checkpoint_thresholds(tmp_path: Path) -> None:
    def fit(trainer: Any) -> list[str]:
        trainer.data_provider = iter(tiny_batches())
        trainer.fit()
        return sorted(path.name for path in tmp_path.iterdir())

    config = {"n_checkpoints": 3, "total_training_samples": 8 * TOKENS}
    trainer = tiny_trainer(tiny_sae("standard"), checkpoint_path=str(tmp_path), **config)
    assert trainer.checkpoint_thresholds == [2 * TOKENS, 4 * TOKENS, 6 * TOKENS]
    trainer.checkpoint_thresholds[:0] = [0, 0]
    assert fit(trainer) == ["160", "224", "32", "64", "96"]  # the first two for one
    again = tmp_path / "again"
    late = tiny_trainer(tiny_sae("standard"), checkpoint_path=str(again), **config)
    late.load_trainer_state(tmp_path / "160")
    assert late.checkpoint_thresholds == [2 * TOKENS, 4 * TOKENS, 6 * TOKENS]
    assert upstream.not_passed(late.checkpoint_thresholds, late) == [6 * TOKENS]


@seam("`MultiSAETrainer.fit` goes on from its `n_training_steps`, `n_training_samples`")
def test_the_counters_of_a_multi_trainer(tmp_path: Path) -> None:
    """Without the help of `continued_multi_training`, and with it."""

    def fit() -> tuple[MultiSAETrainer, list[str]]:
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
        trainer = multi_trainer(tiny_batches(), n_checkpoints=3, checkpoint_path=str(tmp_path))
        for inner in trainer.trainers.values():
            assert inner.checkpoint_thresholds == []
            assert next(inner.data_provider, None) is None
            inner.n_training_steps, inner.n_training_samples = 2, 2 * TOKENS
        first = trainer.trainers["a"]
        first.checkpoint_thresholds = [3 * TOKENS - 1]
        trainer.fit()
        return trainer, sorted(path.name for path in tmp_path.iterdir())

    trainer, folders = fit()
    assert (trainer.n_training_steps, trainer.n_training_samples) == (2, 4 * TOKENS)
    assert folders == ["128", "96"]  # of 32, 64 and 96, which count from the start
    own = MultiSAETrainer.fit
    with upstream.continued_multi_training():
        trainer, folders = fit()
    assert MultiSAETrainer.fit is own
    assert (trainer.n_training_steps, trainer.n_training_samples) == (4, 4 * TOKENS)
    assert folders == ["96"]
    assert trainer.trainers["a"].data_provider is trainer.data_provider


@seam("`SAETrainer` calls `self.sae.training_forward_pass(step_input=...)`")
def test_the_forward_pass_is_looked_up_on_the_instance() -> None:
    trainer = tiny_trainer(tiny_sae("standard"), autocast=True)
    forward, seen = trainer.sae.training_forward_pass, []

    def replacement(*, step_input: Any) -> Any:
        output = forward(step_input=step_input)
        output.loss = output.loss * 0 + 7
        output.losses["mine"] = torch.tensor(5.0)
        output.metrics["mine"] = lambda: torch.tensor(3.0)
        seen.append((torch.is_autocast_enabled("cpu"), dict(step_input.coefficients)))
        return output

    trainer.sae.training_forward_pass = replacement
    before = trainer.sae.W_dec.detach().clone()
    (batch,) = tiny_batches(steps=1)
    output = trainer.step(batch)
    assert seen == [(True, {"l1": 0.1})]
    assert torch.equal(trainer.sae.W_dec, before)  # the loss that was differentiated is constant
    logged = trainer.build_train_step_log_dict(output, 1)
    assert logged["losses/overall_loss"] == 7
    assert logged["losses/mine"] == 5
    assert logged["metrics/mine"] == 3


@seam("between backward and the optimizer's step SAELens only clips at norm 1")
def test_between_backward_and_update() -> None:
    trainer = tiny_trainer(tiny_sae("standard", dtype=torch.float64))
    raw, clipped, events = {}, {}, []
    for name, parameter in trainer.sae.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, n=name: raw.update({n: p.grad.clone()})
        )

    def before(*_: Any) -> None:
        events.append("step")
        clipped.update({n: p.grad.clone() for n, p in trainer.sae.named_parameters()})
        trainer.sae.b_enc.grad = None

    trainer.optimizer.register_step_pre_hook(before)
    (batch,) = tiny_batches(steps=1, dtype=torch.float64)
    trainer.step(10 * batch)
    total = torch.stack([gradient.norm() for gradient in raw.values()]).norm()
    assert total > 1
    assert events == ["step"]
    for name, gradient in raw.items():
        torch.testing.assert_close(clipped[name], gradient / (total + 1e-6))
    assert trainer.sae.b_enc not in trainer.optimizer.state  # skipped: it had no gradient
    assert all(parameter.grad is None for parameter in trainer.sae.parameters())


@seam("`optimizer` is torch's Adam over `sae.parameters()` in one group")
def test_the_optimizer() -> None:
    trainer = tiny_trainer(tiny_sae("gated"))
    advance(trainer, tiny_batches(steps=1))
    assert type(trainer.optimizer) is torch.optim.Adam
    (group,) = trainer.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in trainer.sae.parameters()]
    for parameter in trainer.sae.parameters():
        state = trainer.optimizer.state[parameter]
        assert state.keys() == {"step", *ADAM_MOMENTS}
        assert all(state[moment].shape == parameter.shape for moment in ADAM_MOMENTS)


@seam("`TRAINER_COUNTERS`")
def test_the_trainers_counters() -> None:
    trainer = tiny_trainer(tiny_sae("topk"))
    per_feature = {
        name
        for name, value in vars(trainer).items()
        if isinstance(value, torch.Tensor) and value.shape == (D_SAE,)
    }
    assert per_feature == set(TRAINER_COUNTERS)
    fired = torch.zeros(D_SAE)
    for batch in tiny_batches(steps=3):
        output = trainer.step(batch)
        fired += (output.feature_acts != 0).sum(dim=0)
        assert torch.equal(trainer.act_freq_scores, fired)


@seam("`n_training_steps` counts completed steps")
def test_who_counts_steps_and_samples() -> None:
    batches = tiny_batches()
    trainer = tiny_trainer(tiny_sae("standard"), batches)
    trainer.step(batches[0])
    assert (trainer.n_training_steps, trainer.n_training_samples) == (0, TOKENS)
    trainer.n_training_samples = 0
    trainer.fit()
    assert trainer.n_training_steps == STEPS
    assert trainer.n_training_samples == trainer.cfg.total_training_samples == STEPS * TOKENS


@seam("`lr_scheduler.step()` runs once in each `SAETrainer.step`")
def test_the_schedule_counts_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = tiny_batches(steps=3)
    trainer = tiny_trainer(tiny_sae("standard"), batches)
    steps = watch(monkeypatch, type(trainer.lr_scheduler), "step")
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)  # no weight moves
    for done, batch in enumerate(batches, start=1):
        advance(trainer, [batch])
        assert len(steps) == done


@seam("`activation_scaler.scaling_factor` holds until `fit` folds it")
def test_the_activation_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = tiny_sae("standard", normalize_activations="expected_average_only_in")
    trainer = tiny_trainer(
        sae, tiny_batches(), n_batches_for_norm_estimate=2, total_training_samples=2 * TOKENS
    )
    scales, folded = [], []
    step, fold = trainer.step, sae.fold_activation_norm_scaling_factor

    def watched(batch: torch.Tensor) -> Any:
        scales.append(trainer.activation_scaler.scaling_factor)
        output = step(batch)
        torch.testing.assert_close(output.sae_in, batch * scales[-1])
        return output

    monkeypatch.setattr(trainer, "step", watched)
    monkeypatch.setattr(
        sae,
        "fold_activation_norm_scaling_factor",
        lambda scale: (folded.append(scale), fold(scale)),
    )
    trainer.fit()
    assert len(scales) == 2
    assert scales[0] == scales[1] == folded[0]
    assert trainer.activation_scaler.scaling_factor is None


@seam("`SAETrainer.fit`, with nothing left to train on, takes no batch")
def test_closing_a_training(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    sae = tiny_sae("standard", normalize_activations="expected_average_only_in")
    batches, ended = tiny_batches(), []
    with upstream.no_bars():
        trainer = tiny_trainer(sae, batches, n_batches_for_norm_estimate=2)
        trainer.activation_scaler.estimate_scaling_factor(D_IN, iter(batches), 2)
        scale = trainer.activation_scaler.scaling_factor
        advance(trainer, batches)
        monkeypatch.setattr(trainer, "set_final_sae_metadata", lambda: ended.append(True))
        weights = sae.W_enc.clone()
        trainer.fit()
    assert len([*trainer.data_provider]) == len(batches)
    assert torch.equal(sae.W_enc, weights * scale)
    assert ended == [True]
    assert capsys.readouterr() == ("", "")
    tiny_trainer(tiny_sae("standard"), batches).fit()
    assert "Training SAE" in capsys.readouterr().err


@seam("`ActivationScaler.estimate_scaling_factor` and `estimate_whitening`")
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_what_is_estimated(normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    for name in ("estimate_scaling_factor", "estimate_whitening"):
        monkeypatch.setattr(
            ActivationScaler, name, lambda self, name=name, **given: called.append((name, given))
        )
    trainer = tiny_trainer(tiny_sae("standard", normalize_activations=normalize), tiny_batches())
    trainer.fit()
    name = {
        "expected_average_only_in": "estimate_scaling_factor",
        "covariance_whitening": "estimate_whitening",
    }.get(normalize)
    given = {
        "d_in": D_IN,
        "data_provider": trainer.data_provider,
        "n_batches_for_norm_estimate": trainer.cfg.n_batches_for_norm_estimate,
    }
    assert called == ([(name, given)] if name else [])


@seam("`TrainingSAE.mse_loss_fn(sae_out, sae_in)` gives [B, ...] losses")
@pytest.mark.parametrize("architecture", CASES)
def test_the_reconstruction_loss(architecture: str) -> None:
    sae, calls = tiny_sae(architecture), []
    trainer = tiny_trainer(sae)

    def loss(sae_out: torch.Tensor, sae_in: torch.Tensor) -> torch.Tensor:
        calls.append((sae_out.shape, sae_in.shape))
        return (sae_out * 0 + 2)[:, :3]

    sae.mse_loss_fn = loss
    (batch,) = tiny_batches(steps=1)
    output = trainer.step(batch)
    assert set(calls) == {((TOKENS, D_IN), (TOKENS, D_IN))}
    assert output.losses["mse_loss"] == 6  # summed over the last axis, averaged over tokens


@seam("the loss of a coefficient `NAME` is `output.losses")
@pytest.mark.parametrize("architecture", expected.ARCHITECTURES)
def test_the_loss_of_a_coefficient_is_linear_in_it(architecture: str) -> None:
    batch, found = tiny_batches(steps=1, dtype=torch.float64)[0], []
    sae = tiny_sae(architecture, dtype=torch.float64)
    row = expected.ARCHITECTURES[architecture]
    assert [*sae.get_coefficients()] == [*(row.coefficient or ())][:1]
    for name, (value, _) in sae.get_coefficients().items():
        for factor in (1, 3):
            step_input = TrainStepInput(batch, {name: factor * value}, None, 0, False)
            output = sae.training_forward_pass(step_input)
            found.append((output.loss.item(), output.losses[f"{name}_loss"].item()))
        (loss, term), (more, three_terms) = found
        assert 0 < three_terms == pytest.approx(3 * term, rel=1e-12)
        assert more - loss == pytest.approx(2 * term, rel=1e-12)


@seam("`TrainingSAE.hook_sae_acts_post` is passed by the activations")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("architecture", CASES)
def test_the_hook_on_activations(architecture: str, autocast: bool) -> None:
    sae, passes = tiny_sae(architecture), []
    sae.hook_sae_acts_post.add_hook(
        lambda acts, hook: (passes.append(acts), acts * 0.5)[1], is_permanent=True
    )
    trainer = tiny_trainer(sae, autocast=autocast)
    output = trainer.step(*tiny_batches(steps=1))
    if not expected.ARCHITECTURES[architecture].hooked:
        assert not passes
    else:
        (acts,) = passes
        torch.testing.assert_close(output.feature_acts, acts * 0.5)
        torch.testing.assert_close(trainer.act_freq_scores, (acts != 0).float().sum(dim=0))


@pytest.mark.ci
def test_the_hook_on_activations_is_passed_when_compiled() -> None:
    outputs = []
    for compiles in (False, True):
        sae = tiny_sae("standard")
        sae.hook_sae_acts_post.add_hook(lambda acts, hook: acts * 0.5, is_permanent=True)
        trainer = tiny_trainer(sae)
        if compiles:
            forward = torch.compile(sae.training_forward_pass, backend="aot_eager")
            trainer.sae.training_forward_pass = forward
        outputs.append(trainer.step(*tiny_batches(steps=1)))
    torch.testing.assert_close(outputs[0].feature_acts, outputs[1].feature_acts)


@seam("`TrainingSAE.decode(feature_acts)` is called on the instance")
@pytest.mark.parametrize("architecture", CASES)
def test_the_decoder(architecture: str) -> None:
    sae, seen = tiny_sae(architecture), []
    decode = sae.decode
    sae.decode = lambda feature_acts: (seen.append(feature_acts), decode(feature_acts) + 1)[1]
    output = tiny_trainer(sae).step(*tiny_batches(steps=1))
    (acts,) = seen
    assert acts is output.feature_acts
    assert not torch.equal(output.sae_out, decode(acts))


@seam("a training forward pass passes the `POINTS_OF_A_STEP`")
@pytest.mark.parametrize("architecture", HAVING_A_FAST_STEP)
def test_the_points_of_a_step_are_known(architecture: str) -> None:
    sae, heard = tiny_sae(architecture), set()
    assert upstream.altered(sae) == []
    for name, point in sae.hook_dict.items():
        point.register_forward_hook(lambda *_, name=name: heard.add(name))
    advance(tiny_trainer(sae), tiny_batches(steps=1))
    assert heard == {*upstream.POINTS_OF_A_STEP}
    assert {*upstream.altered(sae)} == heard


@seam("`TrainingSAE.W_enc` is looked up on the instance in a training forward pass")
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {"matching_pursuit"}))
def test_an_attribute_goes_before_the_encoder(architecture: str) -> None:
    sae, (batch,) = tiny_sae(architecture), tiny_batches(steps=1)
    coefficients = {name: value for name, (value, _) in sae.get_coefficients().items()}
    vars(sae)["W_enc"] = 2 * sae.W_dec.T
    output = sae.training_forward_pass(TrainStepInput(batch, coefficients, None, 0, False))
    output.loss.backward()
    del vars(sae)["W_enc"]
    assert isinstance(sae.W_enc, torch.nn.Parameter)
    assert sae.W_enc.grad is None
    assert sae.W_dec.grad is not None


@seam("`TrainingSAE.activation_fn` is of the class that")
def test_the_activation_is_an_object_that_can_be_told_from_another() -> None:
    for architecture in HAVING_A_FAST_STEP:
        sae = tiny_sae(architecture)
        assert getattr(sae.activation_fn, "k", None) == getattr(sae.cfg, "k", None)
        sae.activation_fn = torch.nn.Tanh()
        assert upstream.altered(sae) == ["activation_fn"]


@seam("`TrainingSAE.save_inference_model(path)` writes")
def test_saving_the_inference_model(tmp_path: Path) -> None:
    sae = tiny_sae("standard")
    paths = sae.save_inference_model(tmp_path)
    assert paths == (tmp_path / SAE_WEIGHTS_FILENAME, tmp_path / SAE_CFG_FILENAME)
    assert load_file(paths[0]).keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    assert json.loads(paths[1].read_text())["d_sae"] == D_SAE


@seam("`TrainingSAE.cfg.metadata` keeps any attribute")
def test_metadata(tmp_path: Path) -> None:
    sae = tiny_sae("standard")
    sae.cfg.metadata.sae_plugins = {"plugins": [{"name": "p"}]}
    for save in (sae.save_model, sae.save_inference_model):
        _, config = save(tmp_path)
        saved = json.loads(Path(config).read_text())
        assert saved["metadata"]["sae_plugins"] == {"plugins": [{"name": "p"}]}


@seam("`to_dict()` of both runners' configs")
def test_what_runners_write_of_their_config(tmp_path: Path) -> None:
    """In no other way: neither they nor the log turn it into JSON themselves."""
    import sae_lens.config
    import sae_lens.llm_sae_training_runner as language_model
    import sae_lens.synthetic.synthetic_sae_runner as synthetic

    for module, config in (
        (language_model, language_model.LanguageModelSAERunnerConfig),
        (synthetic, synthetic.SyntheticSAERunnerConfig),
    ):
        source = inspect.getsource(module)
        assert "config=self.cfg.to_dict()" in source, "for wandb.init"
        told = re.findall(r"json\.dump\((.*?)[,)]", source)
        assert told
        assert set(told) <= {"runner_config", "self.cfg.to_dict(", "eval_stats.to_dict("}
        assert callable(config.to_dict)
    assert inspect.getsource(language_model).count("runner_config = self.cfg.to_dict()") == 2
    log = inspect.getsource(sae_lens.config.LoggingConfig.log)
    assert set(re.findall(r"trainer\.(\w+)", log)) == {"sae", "cfg"}


@seam("`SAETrainer.build_train_step_log_dict(output, n_training_samples)`")
def test_the_metrics_of_a_step() -> None:
    parameters = inspect.signature(SAETrainer.build_train_step_log_dict).parameters
    assert list(parameters) == ["self", "output", "n_training_samples"]
    trainer = tiny_trainer(tiny_sae("standard"))
    (batch,) = tiny_batches(steps=1)
    output = trainer.step(batch)
    logged = trainer.build_train_step_log_dict(output, 7)
    assert logged["losses/overall_loss"] == output.loss.item()
    assert logged["details/n_training_samples"] == 7
    ours = {"metrics/l0", "metrics/explained_variance", "sparsity/dead_features"}
    assert logged.keys() >= {*ours, "details/current_learning_rate"}  # in summaries and figures


@seam("`SAE.hook_z_reshaping_mode`")
def test_reshaping_of_heads(tmp_path: Path) -> None:
    sae = tiny_sae("standard", reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    assert sae.hook_z_reshaping_mode is False  # never in training
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(str(tmp_path))
    heads = torch.randn(5, 2, D_IN // 2)
    assert loaded.hook_z_reshaping_mode is True
    expected = loaded(heads)
    assert expected.shape == heads.shape
    loaded.turn_off_forward_pass_hook_z_reshaping()
    assert loaded.hook_z_reshaping_mode is False
    torch.testing.assert_close(loaded(heads.flatten(1)), expected.flatten(1))
    loaded.turn_on_forward_pass_hook_z_reshaping()
    assert loaded.hook_z_reshaping_mode is True


def text(rows: int, token: int | None = None) -> IterableDataset:
    """`rows` documents of 16 tokens below 19, or of one token."""
    tokens = torch.randint(19, (rows, 16)) if token is None else torch.full((rows, 16), token)
    # iterable: what datasets 3 does with a `Dataset` of tokens needs an older torchvision
    return Dataset.from_dict({"tokens": tokens.tolist()}).to_iterable_dataset()


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    with torch.random.fork_rng():
        shape = {"n_layers": 2, "d_model": D_IN, "d_head": 4, "n_ctx": 16, "d_vocab": 20}
        return HookedTransformer(HookedTransformerConfig(**shape, act_fn="relu", seed=0))


def runner_config(**settings: Any) -> LanguageModelSAERunnerConfig[Any]:
    return LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
        **{
            "model_name": "tiny",
            "hook_name": HOOK,
            "dataset_path": "none",
            "context_size": 16,
            "training_tokens": 128,
            "train_batch_size_tokens": 32,
            "store_batch_size_prompts": 2,
            "n_batches_in_buffer": 4,
            "n_eval_batches": 1,
            "prepend_bos": False,
            "checkpoint_path": None,
            "output_path": None,
            "logger": LoggingConfig(log_to_wandb=False),
            **settings,
        },
    )


@seam("`ActivationsStore.from_config(model, cfg, override_dataset=...)`")
def test_a_store_over_given_text(model: HookedTransformer) -> None:
    dataset = text(4)
    # the config's dataset, "none", exists nowhere
    store = ActivationsStore.from_config(model, runner_config(), override_dataset=dataset)
    first = torch.tensor([row["tokens"] for row in dataset][:2])
    assert torch.equal(store.get_batch_tokens(raise_at_epoch_end=True), first)
    store.get_batch_tokens(raise_at_epoch_end=True)
    with pytest.raises(StopIteration):
        store.get_batch_tokens(raise_at_epoch_end=True)


@seam("`ActivationsStore.get_filtered_llm_batch(raise_on_epoch_end=True)`")
def test_batches_of_a_store(model: HookedTransformer) -> None:
    dataset = text(4)
    excluded = int(next(iter(dataset))["tokens"][0])
    config = runner_config(exclude_special_tokens=[excluded])
    store = ActivationsStore.from_config(model, config, override_dataset=dataset)
    batches = [store.get_filtered_llm_batch(raise_on_epoch_end=True) for _ in range(2)]
    with pytest.raises(StopIteration):
        store.get_filtered_llm_batch(raise_on_epoch_end=True)
    tokens = torch.tensor([row["tokens"] for row in dataset])
    _, cache = model.run_with_cache(tokens, prepend_bos=False)
    expected = cache["blocks.0.hook_resid_post"][tokens != excluded]
    assert expected.shape[0] < tokens.numel()
    torch.testing.assert_close(torch.cat(batches), expected)


@seam("`ActivationsStore.get_activations(batch_tokens)`")
def test_where_tokens_become_activations(model: HookedTransformer) -> None:
    store = ActivationsStore.from_config(model, runner_config(), override_dataset=text(4))
    asked: list[torch.Tensor] = []

    def compute(own: Any, tokens: torch.Tensor) -> torch.Tensor:
        asked.append(tokens)
        return own(tokens) + 1

    upstream.computing(store, compute)
    found = store.get_filtered_llm_batch()
    (tokens,) = asked
    assert tokens.shape == (store.store_batch_size_prompts, store.context_size)
    _, cache = model.run_with_cache(tokens, prepend_bos=False)
    expected = cache["blocks.0.hook_resid_post"] + 1
    torch.testing.assert_close(found, expected.flatten(0, 1))
    assert found.dtype == torch.float32
    assert store.get_activations(tokens).shape == expected.shape
    next(iter(store))  # batches of training come from there, too
    assert len(asked) > 2


@seam("`ActivationsStore.training_context_size` counts the positions of a prompt")
@pytest.mark.parametrize("seqpos_slice", [(None,), (1, None, 3), (-5, -1)])
def test_positions_that_are_trained_on(model: HookedTransformer, seqpos_slice: Any) -> None:
    config = runner_config(seqpos_slice=seqpos_slice)
    store = ActivationsStore.from_config(model, config, override_dataset=text(4))
    assert store.training_context_size == upstream.trained_positions(16, seqpos_slice)


@seam("`ActivationsStore.get_raw_llm_batch`, looked up on the instance")
def test_the_first_batch_is_seen_and_no_other(model: HookedTransformer) -> None:
    excluded = int(next(iter(text(4)))["tokens"][0])
    config = runner_config(exclude_special_tokens=[excluded])
    store = ActivationsStore.from_config(model, config, override_dataset=text(4))
    seen: list[Any] = []
    upstream.first_batch_seen(store, lambda acts, tokens: seen.append((acts, tokens)))
    first = store.get_filtered_llm_batch(raise_on_epoch_end=True)
    store.get_filtered_llm_batch(raise_on_epoch_end=True)
    ((acts, tokens),) = seen
    assert tokens is not None
    assert acts.shape[0] == tokens.shape[0] == store.store_batch_size_prompts * store.context_size
    assert torch.equal(acts[tokens != excluded], first)


@seam("`ActivationsStore.get_data_loader()` and `get_multi_hook_data_loader()` are where")
@pytest.mark.parametrize("prefetch", [False, 2])
@pytest.mark.parametrize("multi_hook", [False, True])
def test_where_the_runners_batches_come_from(
    multi_hook: bool, prefetch: Any, model: HookedTransformer
) -> None:
    asked: list[Any] = []
    batches = tiny_batches(steps=20)

    def substitute(store: Any, multi: bool) -> Any:
        asked.append((store, multi))
        return iter([{HOOK: batch} for batch in batches] if multi else batches)

    own = ActivationsStore.get_data_loader, ActivationsStore.get_multi_hook_data_loader
    with upstream.data_loader(substitute):
        runner = runner_of(model, multi_hook, prefetch_llm_batches=prefetch)
        runner.run()
    assert asked == [(runner.activations_store, multi_hook)]
    assert own == (ActivationsStore.get_data_loader, ActivationsStore.get_multi_hook_data_loader)


def runner_of(model: HookedTransformer, multi_hook: bool, **settings: Any) -> Any:
    given = {"override_model": model, "override_dataset": text(40)}
    config = runner_config(**settings)
    if not multi_hook:
        return LanguageModelSAETrainingRunner(config, **given)
    fields = vars(config).keys() & {
        f.name for f in dataclasses.fields(MultiSAETrainingRunnerConfig)
    }
    several = MultiSAETrainingRunnerConfig(
        saes={"a": config.sae}, hook_names=HOOK, **{name: vars(config)[name] for name in fields}
    )
    return MultiSAETrainingRunner(several, **given)


@seam("`PrefetchingIterator.__next__` is where batches leave its queue")
@pytest.mark.parametrize("multi_hook", [False, True])
def test_where_prefetched_batches_leave_the_queue(
    multi_hook: bool, model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    trained: list[torch.Tensor] = []
    step = SAETrainer.step
    monkeypatch.setattr(
        SAETrainer, "step", lambda self, batch: (trained.append(batch), step(self, batch))[1]
    )
    own = PrefetchingIterator.__next__
    with upstream.prefetched(lambda batch: (taken.append(batch), batch)[1]):
        runner_of(model, multi_hook, prefetch_llm_batches=2).run()
        assert len(taken) == len(trained) == 4
        runner_of(model, multi_hook).run()
    assert PrefetchingIterator.__next__ is own
    assert len(taken) == 4
    for batch, other in zip(taken, trained, strict=False):
        assert (batch[HOOK] if multi_hook else batch) is other


@seam("`ActivationsStore.get_raw_llm_batch`, `get_batch_tokens`, `get_activations`")
@pytest.mark.parametrize("multi_hook", [False, True])
def test_what_makes_batches(multi_hook: bool, model: HookedTransformer) -> None:
    calls: Counter[str] = Counter()

    def watch(part: tuple[str, str], function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[part[1]] += 1
            return function(*args, **kwargs)

        return counted

    with upstream.batches_watched(watch):
        runner_of(model, multi_hook).run()
        runner_of(model, multi_hook, prefetch_llm_batches=2).run()
        SyntheticSAERunner(
            SyntheticSAERunnerConfig(
                synthetic_model=SyntheticModelConfig(num_features=12, hidden_dim=D_IN, seed=0),
                sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
                training_samples=64,
                batch_size=32,
                eval_samples=32,
                output_path=None,
                checkpoint_path=None,
                logger=LoggingConfig(log_to_wandb=False),
            )
        ).run()
    assert calls["language model"] == calls["text"] > 0
    assert calls["moving, or reading cached activations"] == (not multi_hook) * calls["text"]
    assert calls["waiting for those read ahead"] == 4
    assert calls["synthetic model"] > 0
    assert calls["true features"] == 1


@seam("`LanguageModelSAERunnerConfig.checkpoint_path` gets a random subfolder")
def test_the_checkpoint_path(tmp_path: Path) -> None:
    config = runner_config(checkpoint_path=str(tmp_path))
    assert Path(config.checkpoint_path).parent == tmp_path
    config.checkpoint_path = str(tmp_path)
    assert config.to_sae_trainer_config().checkpoint_path == str(tmp_path)
    assert runner_config(checkpoint_path=None).checkpoint_path is None


@seam("`LanguageModelSAETrainingRunner.evaluator`")
def test_the_runners_evaluator(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = runner_config()
    runner = LanguageModelSAETrainingRunner(config, override_model=model, override_dataset=text(40))
    assert type(runner.evaluator) is LLMSaeEvaluator
    assert runner.evaluator.activations_store is runner.activations_store
    read: list[Any] = []
    monkeypatch.setattr(
        llm_sae_training_runner,
        "run_evals",
        lambda **arguments: (read.append(arguments["activation_store"]), ({}, {}))[1],
    )
    other = ActivationsStore.from_config(model, config, override_dataset=text(4))
    runner.evaluator.activations_store = other
    runner.evaluator(runner.sae, None, ActivationScaler())
    assert read == [other]
    trainers: list[Any] = []
    monkeypatch.setattr(SAETrainer, "fit", lambda self: (trainers.append(self), self.sae)[1])
    monkeypatch.setattr(SAETrainer, "log_feature_sparsity", torch.zeros(D_SAE), raising=False)
    runner.evaluator = evaluator = object()
    runner.run()
    assert trainers[0].evaluator is evaluator


def watch(monkeypatch: pytest.MonkeyPatch, owner: Any, *names: str) -> list[Any]:
    """What these methods are called with, in order; the trainer's `fit` does nothing."""
    calls: list[Any] = []

    def watched(name: str, own: Any) -> Callable[..., Any]:
        def method(self: Any, *positional: Any, **given: Any) -> Any:
            named = inspect.signature(own).bind(self, *positional, **given).arguments
            calls.append((name, {key: named[key] for key in named if key != "self"}))
            return own(self, *positional, **given)

        return method

    for name in names:
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    own = watched("trainer", SAETrainer.__init__)
    monkeypatch.setattr(SAETrainer, "__init__", own)
    monkeypatch.setattr(SAETrainer, "fit", lambda self: self.sae)
    monkeypatch.setattr(SAETrainer, "log_feature_sparsity", torch.zeros(D_SAE), raising=False)
    return calls


@seam("`LanguageModelSAETrainingRunner.run` is what `LanguageModelJob.trainer` and `stream` do")
def test_what_a_run_does(
    model: HookedTransformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = watch(
        monkeypatch,
        LanguageModelSAETrainingRunner,
        *("_set_sae_metadata", "_compile_sae_if_needed", "save_final_sae"),
    )
    runner = LanguageModelSAETrainingRunner(
        runner_config(output_path=str(tmp_path)), override_model=model, override_dataset=text(4)
    )
    runner.run()
    given = dict(calls)
    assert [*given] == ["_set_sae_metadata", "trainer", "_compile_sae_if_needed", "save_final_sae"]
    assert given["trainer"]["sae"] is runner.sae
    assert given["trainer"]["cfg"] == runner.cfg.to_sae_trainer_config()
    assert given["trainer"]["data_provider"] is runner.activations_store
    assert [*given["save_final_sae"]] == ["sae", "output_path", "log_feature_sparsity"]
    assert not given["_set_sae_metadata"]
    assert not given["_compile_sae_if_needed"]


@seam("`SyntheticSAERunner.run` is what `SyntheticJob.trainer` and `stream` do")
def test_what_a_synthetic_run_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = watch(monkeypatch, SyntheticSAERunner, "_save_outputs")
    runner = SyntheticSAERunner(
        SyntheticSAERunnerConfig(
            synthetic_model=SyntheticModelConfig(num_features=12, hidden_dim=D_IN, seed=0),
            sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
            output_path=str(tmp_path),
            checkpoint_path=None,
            run_final_eval=False,
            logger=LoggingConfig(log_to_wandb=False),
        )
    )
    runner.run()
    given = dict(calls)
    assert [*given] == ["trainer", "_save_outputs"]
    assert given["trainer"]["sae"] is runner.sae
    assert given["trainer"]["cfg"] == runner.cfg.to_sae_trainer_config()
    batches = given["trainer"]["data_provider"]
    assert vars(batches) == {
        "feature_dict": runner.synthetic_model.feature_dict,
        "activations_generator": runner.synthetic_model.activation_generator,
        "batch_size": runner.cfg.batch_size,
        "autocast": runner.cfg.autocast_data,
    }
    assert [*given["_save_outputs"]] == [
        *("output_path", "sae", "log_feature_sparsity", "eval_stats"),
    ]


@seam("`SyntheticSAERunner._create_evaluator()`")
def test_the_evaluator_of_synthetic_runs() -> None:
    small = SyntheticModelConfig(num_features=12, hidden_dim=D_IN, bias=False, seed=0)
    runner: Any = SyntheticSAERunner(
        SyntheticSAERunnerConfig(
            synthetic_model=small,
            sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
            training_samples=64,
            batch_size=32,
            eval_frequency=1,
            eval_samples=32,
            output_path=None,
            checkpoint_path=None,
            logger=LoggingConfig(log_to_wandb=False),
        )
    )
    create, created = runner._create_evaluator, []

    def creating() -> Any:
        created.append(create())
        return created[0]

    runner._create_evaluator = creating
    runner.run()
    (evaluator,) = created
    assert list(inspect.signature(evaluator).parameters) == [
        "sae",
        "data_provider",
        "activation_scaler",
    ]


@seam("`SyntheticActivationIterator` has no state but torch's global random state")
def test_synthetic_batches() -> None:
    random_state = random_states()
    features, generator = FeatureDictionary(16, D_IN), ActivationGenerator(16, 0.2)
    set_random_states(random_state)
    iterator = SyntheticActivationIterator(features, generator, 4)
    assert upstream.is_synthetic(iterator)
    assert not upstream.is_synthetic(iter([]))
    next(iterator)
    state = torch.get_rng_state()
    expected = [next(iterator) for _ in range(3)]
    torch.set_rng_state(state)
    again = SyntheticActivationIterator(features, generator, 4)
    assert all(torch.equal(next(again), batch) for batch in expected)
    now = random_states()
    assert now["python"] == random_state["python"]
    assert (now["numpy"][1] == random_state["numpy"][1]).all()


@seam("`extract_stop_at_layer_from_tlens_hook_name(hook_name)`")
def test_where_a_model_may_stop() -> None:
    assert extract_stop_at_layer_from_tlens_hook_name("blocks.3.hook_resid_post") == 4
    assert extract_stop_at_layer_from_tlens_hook_name("hook_embed") is None


@seam("`HookedSAETransformer` computes what a HookedTransformer does")
def test_a_model_that_takes_saes_is_the_same_model(model: HookedTransformer) -> None:
    with torch.random.fork_rng():
        taking = HookedSAETransformer(model.cfg)
    taking.load_state_dict(model.state_dict())
    added = {f"blocks.{layer}.mlp.hook_in" for layer in range(model.cfg.n_layers)}
    assert {*taking.hook_dict} == {*model.hook_dict} | added
    tokens = torch.arange(12)[None]
    (wanted, seen), (found, cache) = (each.run_with_cache(tokens) for each in (model, taking))
    assert torch.equal(wanted, found)
    assert all(torch.equal(seen[name], cache[name]) for name in seen)


@seam("`SAETransformerBridge.hook_dict` lacks names of hooks")
def test_what_a_bridge_that_takes_saes_forgets(tmp_path: Path) -> None:
    loader = Bridge(str(language_models.save(tmp_path / "llama")), {})
    hooks: list[set[str]] = []
    for kind in (TransformerBridge, SAETransformerBridge):
        hf = loader.hugging_face("cpu", torch.float32, attn_implementation="eager")
        bridge: Any = kind.boot_transformers(
            loader.name, hf_model=hf, tokenizer=loader.tokenizer, device="cpu"
        )
        hooks.append({*bridge.hook_dict})
    assert HOOK in hooks[0] - hooks[1]
    assert hooks[1] < hooks[0]
    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=2, metadata=SAEMetadata(hook_name=HOOK)))
    bridge.run_with_saes(torch.arange(3)[None], saes=[sae])
    assert bridge.hook_dict["blocks.0.hook_out"].name == "hook_out"


@seam("`get_sae_training_class(architecture)`")
@pytest.mark.parametrize("architecture", CASES)
def test_the_registry(architecture: str) -> None:
    sae_class, config_class = get_sae_training_class(architecture)
    assert issubclass(sae_class, TrainingSAE)
    assert issubclass(config_class, TrainingSAEConfig)
    assert type(tiny_sae(architecture)) is sae_class
    assert config_class.architecture() == architecture


@seam("the warnings that `sae_plugins.runs.setup` silences")
def test_the_silenced_warnings(model: HookedTransformer) -> None:
    def warned(work: Callable[[], Any]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
        return [str(warning.message).strip() for warning in caught]

    def untokenised() -> None:
        with contextlib.suppress(Exception):  # this model has no tokenizer; it warns before
            rows = Dataset.from_dict({"text": ["a b c"]})
            ActivationsStore.from_config(model, runner_config(), override_dataset=rows)

    def short() -> None:
        rows = text(2)
        config = runner_config(training_tokens=10**6)
        store = ActivationsStore.from_config(model, config, override_dataset=rows)
        batches = store._iterate_filtered_activations()
        next(batches), next(batches)

    def with_arguments() -> None:
        metadata = SAEMetadata(model_from_pretrained_kwargs={"center_writing_weights": False})
        StandardTrainingSAE(StandardTrainingSAEConfig(D_IN, D_SAE, metadata=metadata))

    said = [*warned(untokenised), *warned(short), *warned(with_arguments)]
    for beginning in jobs._EXPECTED_WARNINGS:
        assert any(message.startswith(beginning) for message in said), said


@seam("on SIGINT and SIGTERM the runners' handlers raise `InterruptedException`")
def test_interruption() -> None:
    from sae_lens import llm_sae_training_runner, multi_sae_training_runner

    for module in (llm_sae_training_runner, multi_sae_training_runner):
        source = inspect.getsource(module)
        assert "signal.signal(signal.SIGINT, interrupt_callback)" in source
        assert "signal.signal(signal.SIGTERM, interrupt_callback)" in source
        with pytest.raises(upstream.interruption()):
            module.interrupt_callback(2, None)
        assert module.InterruptedException is upstream.interruption()


@seam("`LanguageModelSAETrainingRunner.save_checkpoint(path)` is called on interruption")
def test_the_folder_of_an_interrupted_run(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Any:
        config = runner_config()
        config.checkpoint_path = str(tmp_path / "run")
        with monkeypatch.context() as patched:
            # it leaves its handlers behind
            patched.setattr(llm_sae_training_runner.signal, "signal", lambda *_: None)
            runner = LanguageModelSAETrainingRunner(
                config, override_model=model, override_dataset=text(40)
            )
            patched.setattr(SAETrainer, "fit", stopped)
            runner.run()

    def stopped(self: Any) -> None:
        self.n_training_samples = 7
        raise upstream.interruption()

    with pytest.raises(Exception, match="No such file") as caught:
        interrupted()
    assert not isinstance(caught.value, upstream.interruption())  # SAELens' own mistake
    own = LanguageModelSAETrainingRunner.save_checkpoint
    with upstream.interrupted_runs_unsaved(), pytest.raises(upstream.interruption()):
        interrupted()
    assert LanguageModelSAETrainingRunner.save_checkpoint is own
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "7").mkdir(parents=True)  # as for one of `n_checkpoints`
    with upstream.interrupted_runs_unsaved(), pytest.raises(upstream.interruption()):
        interrupted()
    assert (tmp_path / "run" / "7" / "activations_store_state.safetensors").exists()


@seam("the parameters of each architecture are those of `sae_plugins.framework.architectures`")
@pytest.mark.parametrize("architecture", CASES)
def test_parameters(architecture: str) -> None:
    sae, row = tiny_sae(architecture), ARCHITECTURES[architecture]
    assert architecture_of(sae) is row
    named = dict(sae.named_parameters())
    assert named.keys() == row.feature_axes.keys() | (row.shared & named.keys())
    for name, axis in row.feature_axes.items():
        assert named[name].shape[axis] == D_SAE
    for bias, value in row.biases.items():
        initial = getattr(sae.cfg, value) if isinstance(value, str) else value
        assert (named[bias] == initial).all()  # a reset goes back to the initial value
    expected = {row.sparsity_coefficient} if row.sparsity_coefficient else set()
    assert sae.get_coefficients().keys() == expected
    assert ("W_enc" not in named) == row.tied
    signed = sae.encode(torch.cat(tiny_batches(steps=2))).min() < 0
    assert bool(signed) == row.signed


def test_the_table_names_saelens_own_architectures() -> None:
    assert ARCHITECTURES.keys() <= SAE_TRAINING_CLASS_REGISTRY.keys()


@pytest.mark.parametrize("architecture", CASES)
def test_the_table_knows_who_weighs_tokens(architecture: str) -> None:
    """A coefficient per token gives a scalar loss exactly where the table says so."""
    row, sae = ARCHITECTURES[architecture], tiny_sae(architecture)
    if row.sparsity_coefficient is None:
        assert not row.weighs_tokens
        return
    trainer = tiny_trainer(sae)
    weights = torch.linspace(0, 1, TOKENS)
    trainer.get_coefficients = lambda: {row.sparsity_coefficient: weights}
    (batch,) = tiny_batches(steps=1)
    fails = pytest.raises(RuntimeError, match="scalar")
    with contextlib.nullcontext() if row.weighs_tokens else fails:
        output = trainer.step(batch)
        assert output.loss.ndim == 0
