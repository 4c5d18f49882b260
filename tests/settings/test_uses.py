"""Which flags a run uses: the others are refused where they are typed, and else left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.settle import settle
from sae_plugins.settings.uses import RULES, does_not_apply

TOY = "--model_name synthetic:toy"
GPT2 = "--model_name gpt2 --hook_name x --dataset_path y"


def test_rules_are_about_flags():
    assert {name for rule in RULES for name in rule.flags} <= {*all_flags()}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--model_class_name HookedTransformer", "sae-plugins-world comes with the package"),
        ('--model_from_pretrained_kwargs {"n_devices":2}', "and is loaded in one way only"),
        ("--streaming", "sae-plugins-world has its own text"),
        (f"{TOY} --reshape_activations hook_z", "does not apply to synthetic:toy"),
        (f"{TOY} --prepend_bos", "does not apply to synthetic:toy"),
        ("--eval_samples 5", "is for --model_name synthetic:PRESET only"),
        (f"{GPT2} --n_batches_for_norm_estimate 5", "it is for --normalize_activations expected"),
        ("--weight_decay_form coupled", "it needs --weight_decay"),
        ("--plugin hierarchical --weight_decay 0 --weight_decay_form coupled", "it needs --weight"),
        ("--calibrate_tokens 99", "--calibrate_tokens: no threshold is set: give --calibrate_l0"),
        ("--architecture topk --calibrate_tokens 99", "no threshold is set: give --calibrate_l0"),
        (
            "--architecture batchtopk --calibrate_l0 3 --calibrate_threshold true",
            "--calibrate_threshold: --calibrate_l0 says how many",
        ),
        ("--lr_end 0.1", "--lr_scheduler_name constant ends where it begins"),
        ("--lr_scheduler_name cosineannealing --n_restart_cycles 3", "warmrestarts"),
        ("--architecture jumprelu --target_l0 5", "--jumprelu_sparsity_loss_mode quadratic"),
        ("--architecture matching_pursuit --decoder_init_norm 2", "with norm 1"),
        (f"{TOY} --text_seed 3", "does not apply to synthetic:toy"),
        (f"{TOY} --activation_cache x", "does not apply to synthetic:toy"),
        ("--activation_cache x --use_cached_activations", "has activations of its own"),
        ("--cache_budget 1GB", "it needs --activation_cache"),
        ("--architecture abstopk --fast_step", "abstopk SAEs do not have it"),
        ("--matmul_precision high --prefetch_llm_batches", "one precision for all threads"),
        ("--fast_step --compile_sae", "--compile_sae: --fast_step has a step of its own"),
        ("--cached_activations_path x", "needs --use_cached_activations"),
        ("--trackio_project x", "needs --log_to trackio"),
        ("--log_to tensorboard --trackio_project x", "needs --log_to trackio"),
        ("--log_to mlflow", "it must be 'tensorboard', 'trackio' or none"),
        ("--recorder.log_to trackio", "--recorder.log_to: here it is --log_to"),
        ("--wandb_project x", "needs --log_to_wandb"),
        ("--log_to_wandb --heldout_tokens 0 --n_eval_batches 3", "--heldout_tokens to evaluate"),
        ("--checkpoint_path x", "needs --n_checkpoints"),
        ("--verbose", "--verbose is not available"),
    ],
)
def test_what_a_run_does_not_use_is_refused(line: str, reason: str):
    with pytest.raises(SaePluginsError) as caught:
        settle(train_flags(line.split()))
    assert reason in "\n".join(caught.value.args)


@pytest.mark.parametrize(
    "line",
    [
        "--dataset_path x --streaming",
        "--activation_cache x --cache_budget 1GB",
        f"{GPT2} --streaming --model_class_name AutoModelForCausalLM",
        "--lr_scheduler_name cosineannealing --lr_end 0.1",
        "--weight_decay 0.1 --weight_decay_form coupled",
        "--architecture batchtopk --calibrate_tokens 99",
        "--log_to_wandb --wandb_project x --n_eval_batches 3",
        "--architecture jumprelu --jumprelu_sparsity_loss_mode quadratic --target_l0 5",
    ],
)
def test_what_a_run_uses_is_accepted(line: str):
    flags = train_flags(line.split())
    assert flags.items() <= settle(flags).values.items()


def test_what_a_method_sets_counts():
    settings = settle({"plugin": ["hierarchical"], "weight_decay_form": "coupled"})
    assert settings.plan.training.weight_decay_form == "coupled"
    said = {"weight_decay": 0.01, "weight_decay_form": "coupled"}
    assert said.items() <= settings.as_recipe({}).items()


def test_what_a_recipe_says_in_vain_is_noted(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("streaming: false\nwandb_project: mine\nis_dataset_tokenized: true\n")
    settings = settle({"recipe": str(recipe)})
    assert not {"streaming", "wandb_project", "is_dataset_tokenized"} & settings.values.keys()
    assert settings.notes == [
        "the recipe's is_dataset_tokenized is left out: the dataset's columns say so",
        "the recipe's streaming is left out: sae-plugins-world has its own text, unless "
        "--dataset_path names another",
        "the recipe's wandb_project is left out: it needs --log_to_wandb",
    ]


def test_what_a_run_s_numbers_depend_on_is_in_its_recipe_and_with_its_sae():
    settings = settle(
        train_flags(["--architecture", "topk", "--fast_step", "--matmul_precision", "high"])
    )
    said = {"fast_step": True, "matmul_precision": "high"}
    assert said.items() <= settings.as_recipe({}).items()
    assert said.items() <= settings.plan.provenance()["training"].items()


def test_a_run_s_own_recipe_has_the_flags_that_it_uses():
    settings = settle({})
    for name in settings.as_recipe({}).keys() & all_flags().keys():
        assert does_not_apply(all_flags()[name], settings.get) is None
