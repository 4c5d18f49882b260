"""Every flag of `train` shows in what a run leaves, or is refused, in each kind of run.

A run with a flag is compared with the same run without it: its weights, its metrics, its files and
what it asks of others must differ, and what only repeats the settings does not count.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from safetensors.torch import load_file

from sae_plugins import world
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints.main import main
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.settle import settle

BASE = (
    "--training_tokens 320 --train_batch_size_tokens 32 --d_sae 16 --heldout_tokens 64 "
    "--recorder.every 1"
)
PROMPTS = "--context_size 16 --store_batch_size_prompts 4 --n_batches_in_buffer 16"
ESTIMATE = "--normalize_activations expected_average_only_in --n_batches_for_norm_estimate 2"
KINDS = {
    "world": f"{BASE} {PROMPTS}",
    "text": f"{BASE} {PROMPTS} --dataset_path texts",
    "tokens": f"{BASE} {PROMPTS} --dataset_path tokens",
    "cached": f"{BASE} {PROMPTS} --use_cached_activations --cached_activations_path cached",
    "synthetic": f"{BASE} --model_name synthetic:toy --eval_samples 64",
}
OF_DATA = {
    *("seed", "heldout_tokens", "hook_name", "hook_head_index", "dataset_path", "streaming"),
    *("dataset_config", "dataset_split", "text_column"),
    *("use_chat_formatting", "context_size", "cached_activations_path", "n_batches_in_buffer"),
    *("store_batch_size_prompts", "seqpos_slice", "disable_concat_sequences", "prepend_bos"),
    *("sequence_separator_token", "activations_mixing_fraction", "autocast_lm", "compile_llm"),
    *("llm_compilation_mode", "n_eval_batches", "exclude_special_tokens", "model_kwargs"),
    *("reshape_activations", "prefetch_llm_batches"),
}
"""The flags that may act otherwise on other data; all others are tried on the world's own text."""
ELSEWHERE = {
    **dict.fromkeys(("recipe", "plugin", "without", "overwrite", "resume"), "test_train"),
    **dict.fromkeys(("go_on", "max_time"), "test_train_again"),
    **dict.fromkeys(("output_path", "model_name"), "every run here has it"),
    **{"dry_run": "test_train_dry_run", "profile": "test_train_profile"},
    **dict.fromkeys(("checkpoint_every", "keep_checkpoints", "resume_buffer"), "test_train_resume"),
    **dict.fromkeys(("activation_cache", "cache_budget", "text_seed"), "test_activation_cache"),
    **dict.fromkeys(("model_class_name", "model_from_pretrained_kwargs"), "models that are loaded"),
    **dict.fromkeys(("log_to", "trackio_project"), "test_logs"),
    **dict.fromkeys(("data_shards", "check_ranks", "rank_timeout"), "test_train_ranks"),
    "matmul_precision": "test_step: a CPU may know one precision only",
    **dict.fromkeys(("model_revision", "dataset_revision", "accept_changes"), "test_identity"),
}
"""Flags that other tests hold."""
SAID = {
    "reshape_activations": [*KINDS],  # the saved SAE takes heads
    "prepend_bos": ["tokens", "cached"],  # how the SAE's evaluations read text
    "dataset_path": ["cached"],  # whose activations they are; evaluations leave its texts out
}
"""Flags that show in the saved SAE's config alone, and the kinds of runs where they do."""
CONFIGS = """---
configs:
- config_name: one
  data_files: first-.jsonl
- config_name: other
  data_files: others-.jsonl
---
"""
WANDB = "--log_to_wandb"
OF_TOPK = "--architecture topk --k 4 --normalize_activations none"
OF_JUMPRELU = "--architecture jumprelu"
OF_PURSUIT = "--architecture matching_pursuit --max_iterations 3"
OTHERWISE: dict[str, str | tuple[str, str]] = {
    "architecture": "gated",
    "seed": "7",
    "heldout_tokens": "5000",
    "accumulate": "2",
    "clip": "0.001",
    "weight_decay": "0.5",
    "weight_decay_form": ("--weight_decay 0.5", "coupled"),
    "loss_form": "mean",
    "calibrate_threshold": ("--architecture batchtopk --k 4", "false"),
    "calibrate_l0": "3.5",
    "calibrate_tokens": ("--calibrate_l0 4", "64"),
    "fast_step": "true",
    "lr_warm_up_fraction": "0.5",
    "lr_decay_fraction": "0.5",
    "hook_name": "blocks.0.hook_resid_post",
    "hook_head_index": ("--hook_name blocks.1.attn.hook_z", "1"),
    "dataset_path": "others-texts",
    "streaming": "true",
    "dataset_config": ("--dataset_path configs --dataset_config one", "other"),
    "dataset_split": ("--streaming false", "train[50:]"),
    "text_column": "body",
    "use_chat_formatting": "true",
    "context_size": "8",
    "use_cached_activations": ("--cached_activations_path cached", "true"),
    "cached_activations_path": ("--use_cached_activations", "others-cached"),
    "from_pretrained_path": ("--normalize_activations none", "first"),
    "n_batches_in_buffer": "8",
    "training_tokens": "640",
    "store_batch_size_prompts": "8",
    "seqpos_slice": "1 -1",
    "disable_concat_sequences": "true",
    "sequence_separator_token": "none",
    "activations_mixing_fraction": "0.1",
    "device": "meta",
    "llm_device": "meta",
    "act_store_device": "meta",
    "prefetch_llm_batches": "true",
    "dtype": "bfloat16",
    "prepend_bos": "false",
    "autocast": "true",
    "autocast_lm": "true",
    "compile_llm": "true",
    "llm_compilation_mode": ("--compile_llm", "default"),
    "compile_sae": "true",
    "sae_compilation_mode": ("--compile_sae", "default"),
    "train_batch_size_tokens": "64",
    "adam_beta1": "0.5",
    "adam_beta2": "0.5",
    "lr": "0.01",
    "lr_scheduler_name": "cosineannealing",
    "lr_warm_up_steps": "5",
    "lr_end": ("--lr_scheduler_name cosineannealing", "0.0009"),
    "lr_decay_steps": "5",
    "n_restart_cycles": ("--lr_scheduler_name cosineannealingwarmrestarts", "3"),
    "dead_feature_window": ("--architecture topk --k 1", "1"),
    "feature_sampling_window": "4",
    "n_eval_batches": (f"{WANDB} --wandb_log_frequency 2 --eval_every_n_wandb_logs 2", "1"),
    "eval_batch_size_prompts": (
        f"{WANDB} --wandb_log_frequency 2 --eval_every_n_wandb_logs 2 --n_eval_batches 1",
        "2",
    ),
    "n_checkpoints": "2",
    "checkpoint_path": ("--n_checkpoints 1", "elsewhere"),
    "save_final_checkpoint": "true",
    "resume_from_checkpoint": "checkpoint",
    "model_kwargs": '{"a":1}',
    "exclude_special_tokens": "1 2 3 4 5",
    "n_batches_for_norm_estimate": (ESTIMATE, "4"),
    "d_in": "7",
    "d_sae": "8",
    "apply_b_dec_to_input": "false",
    "normalize_activations": "layer_norm",
    "reshape_activations": ("--hook_name blocks.1.attn.hook_z --heldout_tokens 0", "hook_z"),
    "decoder_init_norm": "1",
    "l1_coefficient": "20",
    "lp_norm": "2",
    "l1_warm_up_steps": "5",
    "k": ("--architecture topk", "2"),
    "use_sparse_activations": (
        "--architecture batchtopk --k 4 --rescale_acts_by_decoder_norm false "
        "--run_final_eval false",
        "true",
    ),
    "aux_loss_coefficient": (f"{OF_TOPK} --k 1 --dead_feature_window 1", "5"),
    "rescale_acts_by_decoder_norm": (OF_TOPK, "false"),
    "jumprelu_init_threshold": (OF_JUMPRELU, "0.5"),
    "jumprelu_bandwidth": (f"{OF_JUMPRELU} --jumprelu_init_threshold 0.5", "2"),
    "jumprelu_sparsity_loss_mode": (OF_JUMPRELU, "tanh"),
    "l0_coefficient": (f"{OF_JUMPRELU} --jumprelu_bandwidth 2", "30"),
    "l0_warm_up_steps": (f"{OF_JUMPRELU} --jumprelu_bandwidth 2", "5"),
    "pre_act_loss_coefficient": (
        f"{OF_JUMPRELU} --dead_feature_window 1 --jumprelu_init_threshold 3",
        "1",
    ),
    "jumprelu_tanh_scale": (f"{OF_JUMPRELU} --jumprelu_sparsity_loss_mode tanh", "1"),
    "jumprelu_ste_to_input": (f"{OF_JUMPRELU} --jumprelu_bandwidth 2", "true"),
    "target_l0": (
        f"{OF_JUMPRELU} --jumprelu_bandwidth 2 --jumprelu_sparsity_loss_mode quadratic "
        "--target_l0 5",
        "9",
    ),
    "topk_threshold_lr": ("--architecture batchtopk --k 4", "0.5"),
    "matryoshka_widths": ("--architecture matryoshka_batchtopk --k 4", "3 16"),
    "use_matryoshka_aux_loss": (
        "--architecture matryoshka_batchtopk --k 1 --dead_feature_window 1",
        "true",
    ),
    "residual_threshold": (OF_PURSUIT, "30"),
    "max_iterations": (OF_PURSUIT, "1"),
    "stop_on_duplicate_support": (f"{OF_PURSUIT} --max_iterations 16", "false"),
    "autocast_data": "true",
    "save_synthetic_model": "true",
    "eval_frequency": (f"{WANDB} --wandb_log_frequency 2", "4"),
    "eval_samples": "128",
    "run_final_eval": "false",
    "log_to_wandb": "true",
    "log_weights_to_wandb": (WANDB, "false"),
    "wandb_project": (WANDB, "other"),
    "wandb_id": (WANDB, "other"),
    "run_name": (WANDB, "other"),
    "wandb_entity": (WANDB, "other"),
    "wandb_log_frequency": (WANDB, "3"),
    "eval_every_n_wandb_logs": (f"{WANDB} --wandb_log_frequency 2 --n_eval_batches 1", "2"),
}
"""Another value of each flag, and the flags without which it would be refused."""


def test_every_flag_is_tried():
    assert {*OTHERWISE, *ELSEWHERE} == {*all_flags()}


# -- what a run leaves ---------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of Weights & Biases, of torch.compile, and of a thread that reads ahead."""
    import wandb
    from sae_lens import llm_sae_training_runner as runner

    calls: list[Any] = []

    class Artifact:
        def __init__(self, name: str, **_: Any) -> None:
            self.name = name

        def add_file(self, path: str) -> None:
            calls.append((self.name, Path(path).name))

    def init(**given: Any) -> None:
        given.pop("config")
        calls.append(("init", given, wandb.setup().settings.run_id))

    def log(values: dict[str, Any], step: int | None = None) -> None:
        seconds = ("per_second", "seconds", "time")
        kept = {n: v for n, v in values.items() if not any(word in n for word in seconds)}
        calls.append((step, json.dumps(kept, default=lambda v: v.item() if _one(v) else "")))

    def compiled(function: Any, **how: Any) -> Any:
        calls.append(("compile", function.__name__, how))
        return function

    class Prefetching(runner.PrefetchingIterator):
        def __init__(self, *given: Any, **how: Any) -> None:
            calls.append("prefetch")
            super().__init__(*given, **how)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    for name, what in (("init", init), ("log", log), ("Artifact", Artifact)):
        monkeypatch.setattr(wandb, name, what)
    for name in ("log_artifact", "Histogram", "Image", "finish"):
        monkeypatch.setattr(wandb, name, lambda *_, **__: None)
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(runner, "PrefetchingIterator", Prefetching)
    return calls


Left = Callable[[str], Any]


@pytest.fixture
def left(
    sketched: None,
    asked: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Left:
    """What a command line leaves; of one that is refused, what is said."""
    load_text = world.load_text
    monkeypatch.setattr(world, "load_text", lambda split: load_text(split, documents=200))
    monkeypatch.setattr(
        world, "load_hooked_transformer", functools.cache(world.load_hooked_transformer)
    )
    monkeypatch.chdir(tmp_path)
    _write_data()
    count = iter(range(1000))

    @functools.cache
    def trained(line: str) -> Any:
        asked.clear()
        folder = Path(f"run-{next(count)}")
        code = main(["train", *line.split(), "--output_path", str(folder)])
        said = capsys.readouterr().err
        return said if code else (*_left(folder), json.dumps(asked, default=str))

    trained(f"{KINDS['world']} --normalize_activations none --n_checkpoints 1 --training_tokens 64")
    Path("run-0").rename("first")
    next(Path("first/checkpoints").iterdir()).rename("checkpoint")
    return trained


def _one(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1


def _left(folder: Path) -> Iterator[Any]:
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            tensors = {n: (t.dtype, t.shape, _hash(t)) for n, t in load_file(file).items()}
            yield name, str(tensors)
        elif file.is_file():
            yield name
    yield _without_times((folder / "summary.json").read_text())
    yield [_without_times(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    yield sorted(map(str, Path("elsewhere").rglob("*")))


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(
        tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    ).hexdigest()[:8]


def _without_times(row: str) -> str:
    values = json.loads(row)
    return str({n: v for n, v in values.items() if "second" not in n and "time" not in n})


def _write_data() -> None:
    """Texts, tokens and cached activations, and others of each."""
    Path("configs").mkdir()
    Path("configs", "README.md").write_text(CONFIGS)
    model = world.load_hooked_transformer("cpu")
    hooks = ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
    for split, start in (("train", ""), ("heldout", "others-")):
        texts = world.load_text(split)["text"]
        tokens = model.to_tokens(" ".join(texts), truncate=False)[0]
        rows = tokens[: len(tokens) // 16 * 16].view(-1, 16)[:300]
        bodies = {"text": texts, "body": texts[::-1]}
        for name, columns in (("texts", bodies), ("tokens", {"tokens": rows.tolist()})):
            made = Dataset.from_dict(columns)
            Path(f"{start}{name}").mkdir()
            made.to_json(f"{start}{name}/train.jsonl")
            if name == "texts":
                made.to_json(f"configs/{start or 'first-'}.jsonl")
        _, found = model.run_with_cache(rows, names_filter=hooks, prepend_bos=False)
        acts = {hook: found[hook].flatten(2) for hook in hooks}
        shapes = {hook: Array2D(tuple(a.shape[1:]), "float32") for hook, a in acts.items()}
        features = Features({**shapes, "token_ids": Sequence(Value("int32"), length=16)})
        arrays = {hook: a.detach().numpy() for hook, a in acts.items()}
        cached = Dataset.from_dict({**arrays, "token_ids": rows.numpy()}, features=features)
        cached.save_to_disk(f"{start}cached")


# -- the tests -----------------------------------------------------------------------------------


PARTS = {"world": 8, "synthetic": 4}
"""Of the flags, each tried in a test of its own."""


def _lines(kind: str) -> Iterator[tuple[str, str, str]]:
    """Each flag with a command line without it and one with it."""
    for name, how in OTHERWISE.items():
        if kind not in ("world", "synthetic") and name not in OF_DATA:
            continue
        needed, value = how if isinstance(how, tuple) else ("", how)
        line = f"{KINDS[kind]} {needed}"
        if _refusal(line) is not None:  # the flag must be refused by itself
            line = KINDS[kind]
        yield name, line, f"{line} --{name} {value}"


def _refusal(line: str) -> str | None:
    try:
        settle(train_flags(line.split()))
    except SaePluginsError as error:
        return "\n".join(error.args)
    return None


@pytest.mark.ci
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        pytest.param(
            kind, part, marks=pytest.mark.slow if part or kind in ("text", "tokens") else ()
        )
        for kind in KINDS
        for part in range(PARTS.get(kind, 1))
    ],
)
def test_every_flag_shows_or_is_refused(kind: str, part: int, left: Left):
    silent = []
    for name, without, given in [*_lines(kind)][part :: PARTS.get(kind, 1)]:
        said = _refusal(given)
        if said is None:
            before, after = left(without), left(given)
            said = after if isinstance(after, str) else None
            if before == after and kind not in SAID.get(name, []):
                silent.append(name)
        if said is not None and f"--{name}" not in said and name != "dataset_path":
            silent.append(f"{name}, refused as: {said}")
    assert not silent, "\n".join(silent)
