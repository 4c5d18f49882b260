"""Files that anything happened to: each is refused in a sentence, or serves; no traceback is shown.

Each seed is one mutation of the `cfg.json` of an SAE, or of the recipe of a run.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import mutations
import pytest
import torch
import yaml
from sae_lens import StandardSAE, StandardSAEConfig

from sae_plugins import world
from sae_plugins.entrypoints.main import main

CONFIG_NAMES = [
    *("metadata", "model_name", "hook_name", "hook_head_index", "context_size", "architecture"),
    *("d_in", "d_sae", "dtype", "device", "normalize_activations", "reshape_activations"),
    *("prepend_bos", "model_from_pretrained_kwargs", "dataset_path", "training_tokens"),
    *("hook_name_out", "seqpos_slice", "sae_plugins", "apply_b_dec_to_input"),
]
RECIPE_NAMES = [
    *("extends", "recipe", "plugin", "without", "resume", "merge.threshold", "lr_warm_up_fraction"),
    *("l1_coefficient", "k", "seed", "dataset_path", "versions", "checkpoint_every"),
]
"""What a mutation adds, or makes of another name."""
EVALUATE = (
    "evaluate sae --suite core --core.n_eval_reconstruction_batches 1 --core.batch_size_prompts 2 "
    "--core.n_eval_sparsity_variance_batches 1 --core.context_size 16 --device cpu --cache_path "
    "cache --output_path out"
)
RAW = re.compile(r"Traceback|: [A-Z]\w*(Error|Exception): ")
"""What says more of us than of the file; in parentheses it may be the reason."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sketched: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config() -> dict[str, Any]:
    """Of an SAE of the embedded world, which is saved in the folder `sae`."""
    made = StandardSAEConfig(d_in=192, d_sae=64)
    plugin = {"name": "reorder", "package": "sae-plugins", "version": "1", "options": {"start": 1}}
    for name, value in {
        "model_name": world.NAME, "hook_name": "blocks.1.hook_resid_post", "prepend_bos": True,
        "context_size": 64, "dataset_path": "x/y", "training_architecture": "batchtopk",
        "training_architecture_details": {"k": 3},
        "sae_plugins": {"methods": ["hybrid-order"], "plugins": [plugin], "training": {"clip": 1}},
    }.items():  # fmt: skip
        made.metadata[name] = value
    sae = StandardSAE(made)
    with torch.no_grad():
        sae.W_enc.normal_(std=0.1)
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_enc.T, dim=1))
    sae.save_model("sae")
    contents: dict[str, Any] = json.loads(Path("sae/cfg.json").read_text())
    return contents


def outcome(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A command's exit code, and what is wrong with what it said."""
    try:
        code = main(line.split())
    except Exception as error:
        return -1, f"{type(error).__name__} escapes: {error}"
    said = "".join(capfd.readouterr())
    if code and not re.search(r"error: |failed|FAILED", said):
        return code, f"nothing is said: {said}"
    return code, said if RAW.search(said) or list(Path("out").rglob("*.error.txt")) else ""


def check(wrong: list[str], codes: Counter[int], *expected: int) -> None:
    assert not wrong, f"{len(wrong)} mutations\n" + "\n".join(wrong)
    assert all(codes[code] >= 10 for code in expected), codes


@pytest.mark.ci
def test_a_mutated_config_is_refused_or_serves(capfd: pytest.CaptureFixture[str]) -> None:
    own, wrong, codes = config(), [], Counter[int]()
    for seed in range(120):
        content, how = mutations.mutated(own, seed, CONFIG_NAMES, ".json")
        Path("sae/cfg.json").write_bytes(content)
        shutil.rmtree("out", ignore_errors=True)
        evaluate = EVALUATE + ("" if seed % 10 == 0 else " --dry_run")
        for line in (evaluate, "upload sae me/saes --dry_run"):
            code, fault = outcome(line, capfd)
            codes[code] += 1
            wrong += [f"seed {seed} ({how}), {line.split()[0]}: {fault}"] if fault else []
    check(wrong, codes, 0, 1, 2)


LONG = (
    *("training_tokens", "heldout_tokens", "eval_samples", "n_batches_for_norm_estimate"),
    *("n_eval_batches", "n_batches_in_buffer", "store_batch_size_prompts"),
    "train_batch_size_tokens",
)
"""Flags whose large values are legitimate, and take hours."""


def short(content: bytes, own: dict[str, Any]) -> bytes:
    """A recipe without what takes hours, minutes to compile, or a server."""
    try:
        tree = yaml.safe_load(content)
        if not isinstance(tree, dict):
            return content
        kept = {n: own[n] for n in LONG if isinstance(tree.get(n), (int, float)) and tree[n] > 2000}
        kept |= {n: False for n in ("compile_llm", "compile_sae", "log_to_wandb") if tree.get(n)}
        return yaml.safe_dump(tree | kept, sort_keys=False).encode() if kept else content
    except (yaml.YAMLError, ValueError, RecursionError):
        return content


@pytest.mark.ci
@pytest.mark.parametrize(
    "model", [pytest.param("synthetic:small", marks=pytest.mark.slow), "sae-plugins-world"]
)
def test_a_mutated_recipe_is_refused_or_serves(
    model: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, hooked = world.load_text, world.load_hooked_transformer
    monkeypatch.setattr(world, "load_text", functools.cache(lambda s: text(s, documents=300)))
    monkeypatch.setattr(world, "load_hooked_transformer", functools.cache(hooked))
    run = (
        f"train --model_name {model} --training_tokens 160 --train_batch_size_tokens 32 --d_sae 16 "
        "--heldout_tokens 64 --n_batches_for_norm_estimate 2 --plugin hybrid-order --reorder.start "
        "1 --reorder.interval 2 --output_path base"
    )
    of_world = " --context_size 16 --store_batch_size_prompts 4 --n_batches_in_buffer 16"
    assert main((run + ("" if ":" in model else of_world)).split()) == 0
    own = yaml.safe_load(Path("base/run.yaml").read_text())
    before, wrong, codes = {*Path.cwd().iterdir()}, [], Counter[int]()
    for seed in range(40):
        content, how = mutations.mutated(own, seed, RECIPE_NAMES, ".yaml")
        Path("mine.yaml").write_bytes(short(content, own))
        shutil.rmtree("out", ignore_errors=True)
        code, fault = outcome("train --recipe mine.yaml --output_path out", capfd)
        codes[code] += 1
        wrong += [f"seed {seed} ({how}): {fault}"] if fault else []
        if code == 2:
            assert {*Path.cwd().iterdir()} == before | {Path.cwd() / "mine.yaml"}, (seed, how)
    check(wrong, codes, 2)
    assert codes[0] >= 3, codes
