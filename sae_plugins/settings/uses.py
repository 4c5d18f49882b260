"""Which flags a run uses: the others are refused where they are typed, and else left out."""

from __future__ import annotations

from sae_plugins.base.saelens import ESTIMATED, SYNTHETIC_NAMES
from sae_plugins.base.started import started
from sae_plugins.base.text import in_words
from sae_plugins.framework.unused import OF_TRAINING, Rule, Values
from sae_plugins.settings.flags import Flag, all_flags
from sae_plugins.world import NAME as WORLD
from sae_plugins.world.synthetic_models import SYNTHETIC


def is_synthetic(value: Values) -> bool:
    """Whether the run is on SAELens' synthetic model."""
    return str(value("model_name")).startswith(SYNTHETIC)


def _is_world(value: Values) -> bool:
    return str(value("model_name")) == WORLD


def _evaluates(value: Values) -> bool:
    return bool(value("log_to_wandb") and value("heldout_tokens"))


def _begins_elsewhere(value: Values) -> bool:
    return bool(value("from_pretrained_path") or value("resume_from_checkpoint"))


_ON_SYNTHETIC = {
    *SYNTHETIC_NAMES,
    *("model_name", "device", "adam_beta1", "adam_beta2", "lr", "lr_scheduler_name", "lr_end"),
    *("lr_warm_up_steps", "lr_decay_steps", "n_restart_cycles", "dead_feature_window"),
    *("feature_sampling_window", "n_checkpoints", "save_final_checkpoint", "checkpoint_path"),
    *("dtype", "n_batches_for_norm_estimate"),
}
"""SAELens' flags for runs on language models that runs on synthetic models have, too."""


def _of_group(group: str) -> tuple[str, ...]:
    return tuple(name for name, flag in all_flags().items() if flag.group == group)


RULES = (
    Rule(_of_group("synthetic"), is_synthetic, "it is for --model_name synthetic:PRESET only"),
    Rule(
        (
            *(name for name in _of_group("runner") if name not in _ON_SYNTHETIC),
            *_of_group("hub"),
            *_of_group("data"),
            *_of_group("caching"),
            *("reshape_activations", "eval_every_n_wandb_logs", "text_seed"),
        ),
        lambda value: not is_synthetic(value),
        "it does not apply to {model_name}",
    ),
    Rule(
        ("model_class_name", "model_from_pretrained_kwargs"),
        lambda value: not _is_world(value),
        f"{WORLD} comes with the package, and is loaded in one way only",
    ),
    Rule(
        ("streaming", "use_chat_formatting"),
        lambda value: not _is_world(value) or bool(value("dataset_path")),
        f"{WORLD} has its own text, unless --dataset_path names another",
    ),
    Rule(
        _of_group("data"),
        lambda value: bool(value("dataset_path")),
        "it is for a --dataset_path, which this run has not",
    ),
    Rule(
        ("decoder_init_norm",),
        lambda value: value("architecture") != "matching_pursuit",
        "SAELens draws matching_pursuit SAEs with norm 1",
    ),
    Rule(
        ("decoder_init_norm", "jumprelu_init_threshold"),
        lambda value: not _begins_elsewhere(value),
        "the weights to begin with are loaded",
    ),
    Rule(
        ("from_pretrained_path",),
        lambda value: not value("resume_from_checkpoint"),
        "--resume_from_checkpoint says where to begin",
    ),
    Rule(
        ("jumprelu_tanh_scale",),
        lambda value: value("jumprelu_sparsity_loss_mode") == "tanh",
        "it is for --jumprelu_sparsity_loss_mode tanh",
    ),
    Rule(
        ("target_l0",),
        lambda value: value("jumprelu_sparsity_loss_mode") == "quadratic",
        "it is for --jumprelu_sparsity_loss_mode quadratic",
    ),
    *OF_TRAINING,
    Rule(
        ("lr_end",),
        lambda value: value("lr_scheduler_name") != "constant",
        "--lr_scheduler_name constant ends where it begins",
    ),
    Rule(
        ("n_restart_cycles",),
        lambda value: value("lr_scheduler_name") == "cosineannealingwarmrestarts",
        "it is for --lr_scheduler_name cosineannealingwarmrestarts",
    ),
    Rule(
        ("n_batches_for_norm_estimate",),
        lambda value: value("normalize_activations") in ESTIMATED,
        f"it is for --normalize_activations {' and '.join(ESTIMATED)}",
    ),
    Rule(("llm_compilation_mode",), lambda value: value("compile_llm"), "it needs --compile_llm"),
    Rule(("sae_compilation_mode",), lambda value: value("compile_sae"), "it needs --compile_sae"),
    Rule(
        ("compile_sae", "use_sparse_activations"),
        lambda value: not value("fast_step"),
        "--fast_step has a step of its own",
    ),
    Rule(
        ("matmul_precision",),
        # the language model's thread would multiply now in one precision, now in the other
        lambda value: not value("prefetch_llm_batches"),
        "--prefetch_llm_batches excludes it: PyTorch has one precision for all threads",
    ),
    Rule(
        ("cached_activations_path",),
        lambda value: value("use_cached_activations"),
        "it needs --use_cached_activations",
    ),
    Rule(
        (
            *("streaming", "use_chat_formatting", "autocast_lm", "compile_llm", "seqpos_slice"),
            *("model_kwargs", "disable_concat_sequences", "sequence_separator_token"),
            *("hook_head_index", "text_seed", *_of_group("data")),
        ),
        lambda value: not value("use_cached_activations"),
        "--use_cached_activations reads no text, and the activations as they are",
    ),
    Rule(
        _of_group("caching"),
        lambda value: not value("use_cached_activations"),
        "--use_cached_activations has activations of its own",
    ),
    Rule(
        ("trackio_project",),
        lambda value: "trackio" in (value("log_to") or ()),
        "it needs --log_to trackio",
    ),
    Rule(
        ("check_ranks", "rank_timeout"),
        lambda value: started()[1] > 1,
        "it is for a run on several ranks, which torchrun starts",
    ),
    Rule(
        ("data_shards",),
        lambda value: not value("resume_from_checkpoint"),
        "a --resume_from_checkpoint of SAELens' goes on in one text",
    ),
    Rule(("cache_budget",), lambda value: value("activation_cache"), "it needs --activation_cache"),
    Rule(
        ("checkpoint_path",),
        lambda value: value("n_checkpoints") or value("save_final_checkpoint"),
        "it needs --n_checkpoints or --save_final_checkpoint",
    ),
    Rule(
        tuple(name for name in _of_group("logger") if name != "log_to_wandb"),
        lambda value: value("log_to_wandb"),
        "it needs --log_to_wandb",
    ),
    Rule(("eval_frequency",), lambda value: value("log_to_wandb"), "it needs --log_to_wandb"),
    Rule(
        ("n_eval_batches", "eval_batch_size_prompts", "eval_every_n_wandb_logs"),
        _evaluates,
        "it needs --log_to_wandb, and --heldout_tokens to evaluate on",
    ),
    Rule(
        ("eval_samples",),
        lambda value: value("run_final_eval") or value("eval_frequency"),
        "it needs --run_final_eval or --eval_frequency",
    ),
)
"""Which runs use which flags; all runs use those that no rule names, and their architecture has."""


def does_not_apply(flag: Flag, value: Values) -> str | None:
    """Why a run with these values does not use a flag; None if it does."""
    architecture = value("architecture")
    if flag.architectures and architecture not in flag.architectures:
        owners = in_words(flag.architectures)
        return f"{architecture} SAEs do not have it; {owners} SAEs (--architecture) do"
    for rule in RULES:
        if flag.name in rule.flags and not rule.used(value):
            return rule.reason.format(model_name=value("model_name"))
    return None
