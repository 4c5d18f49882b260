"""Small SAEs that train in lockstep on the embedded world, or on a toy model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sae_plugins import Plugin, hookimpl
from sae_plugins.base.files import read_rows
from sae_plugins.runs.load import load_setup
from sae_plugins.runs.lockstep import LockstepRun
from sae_plugins.runs.setup import Setup
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settle import settle

WORLD = (
    "--training_tokens 1000 --train_batch_size_tokens 64 --context_size 16 --d_sae 32 --lr 3e-3 "
    "--store_batch_size_prompts 4 --n_batches_in_buffer 16 --n_batches_for_norm_estimate 2 "
    "--feature_sampling_window 6 --heldout_tokens 256 --recorder.every 3"
)
"""15 steps, and one of what is left of the 1000 tokens."""
TOY = (
    "--model_name synthetic:toy --training_tokens 1600 --train_batch_size_tokens 100 "
    "--n_batches_for_norm_estimate 2 --heldout_tokens 500 --run_final_eval false"
)
ARMS = {
    "l1": "--l1_coefficient 0.5",
    "wider": "--d_sae 48",
    "long": "--training_tokens 1400 --lr 1e-3",
    "hybrid-order": "--plugin hybrid-order --accumulate 4 --reorder.start 4 --reorder.interval 4",
    "hierarchical": "--plugin hierarchical --merge.every 3 --merge.threshold 0.5 "
    "--firing-window.window 4 --resample.per token --resample.threshold 0.4",
    "threshold": "--plugin post-hoc-threshold",
    "topk": "--architecture topk --k 4",
    "batchtopk": "--architecture batchtopk --k 4",
    "gated": "--architecture gated",
    "exact": "--architecture gated --calibrate_l0 3 --calibrate_tokens 200",
    "fast": "--architecture topk --k 3 --plugin reorder --fast_step --matmul_precision high",
}
"""Flags by the name of an arm."""


def line(flags: str) -> list[str]:
    base = WORLD if "synthetic:" not in flags else ""
    if "--normalize_activations none" in flags:  # for which nothing is estimated
        base = base.replace("--n_batches_for_norm_estimate 2 ", "")
    return [*base.split(), *flags.split()]


def arm(
    name: str, flags: str | None = None, like: Setup | None = None, **fields: Any
) -> LockstepRun:
    settings = settle(train_flags(line(ARMS[name] if flags is None else flags)))
    return LockstepRun(
        name,
        like.sharing(settings.for_saelens()) if like else load_setup(settings.for_saelens()),
        Path("lockstep") / name,
        **{"plan": settings.plan, **fields},
    )


def arms(flags: dict[str, str]) -> list[LockstepRun]:
    """Arms on one loaded model."""
    first, *others = flags
    one = arm(first, flags[first])
    return [one, *(arm(name, flags[name], one.setup) for name in others)]


def same(left: Path, right: Path) -> bool:
    """Whether two runs wrote the same, but for the times."""

    def written(run: Path) -> Any:
        rows = [{**row, "seconds": 0} for row in read_rows(run / "metrics.jsonl")]
        summary = json.loads((run / "summary.json").read_text())
        timed = ("run/seconds", "training/seconds", "training/tokens_per_second")
        numbers = {name: value for name, value in summary.items() if name not in timed}
        by_feature = run / "metrics_by_feature.jsonl"
        past = by_feature.read_text() if by_feature.exists() else None
        return json.loads((run / "cfg.json").read_text()), rows, numbers, past

    for file in ("sae_weights.safetensors", "sparsity.safetensors"):
        if not (left / file).exists() and not (right / file).exists():
            continue  # as of an SAE that was not trained
        one, other = load_file(left / file), load_file(right / file)
        assert one.keys() == other.keys()
        if not all(tensor.equal(other[name]) for name, tensor in one.items()):
            return False
    return bool(written(left) == written(right))


class AtStepThree(Plugin):
    """Does something at step 3."""

    @hookimpl
    def step_ended(self, run: Any, output: Any) -> None:
        if run.step == 3:
            self.act(output.sae_in)

    def act(self, sae_in: torch.Tensor) -> None:
        raise NotImplementedError


class Raises(AtStepThree):
    """Fails."""

    name = "raises"

    def act(self, sae_in: torch.Tensor) -> None:
        raise RuntimeError("a plugin of somebody's")


def with_plugin(one: LockstepRun, plugin: type[Plugin]) -> LockstepRun:
    plugins = ((plugin, plugin.Options()), *one.plan.plugins)
    return replace(one, plan=replace(one.plan, plugins=plugins))
