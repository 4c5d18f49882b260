"""`sae-plugins evaluate --dry_run`: what would be done, and about what it takes."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from sae_plugins.entrypoints.evaluate_output import exit_code, print_plan

if TYPE_CHECKING:
    from sae_plugins.eval_suites.evaluation.evaluate import Evaluation, Forecast


def dry_run(evaluation: Evaluation) -> int:
    """Print the rows, and about what those that are left take."""
    from sae_plugins.base.files import size

    forecast = evaluation.forecast()
    print_plan(evaluation)
    words = {"ok": "done", "planned": "to do"}
    for row in evaluation.rows:
        reason = f": {row.reason}" if row.reason else ""
        print(f"  {words.get(row.status, row.status):<15}{row.suite}, {row.sae}, seed {row.seed}"
              f"{reason}")  # fmt: skip
    shared = [cost for _, first, cost in forecast.costs if first]
    folder = evaluation.request.cache_path
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    print(f"\nto do: {len(forecast.costs)} rows of {len(evaluation.rows)}")
    print(f"language-model tokens: {sum(cost.llm_tokens for cost in shared):,}")
    print(f"disk in the cache: up to {size(sum(cost.disk for cost in shared))}, {size(free)} free")
    print(f"time: {_time(evaluation, forecast)}")
    return exit_code(evaluation)


_EFFICIENCY = 0.4
"""Of a matrix product's speed, what a language model reaches."""


def _time(evaluation: Evaluation, forecast: Forecast) -> str:
    """About how long it takes; a guess from the numbers of multiplications."""
    if not forecast.costs:
        return "nothing is left to do"
    operations = 0.0
    counts = {s.model_name: _parameters(s.model_name) for s in evaluation.subjects}
    for subject, first, cost in forecast.costs:
        operations += 4.0 * subject.d_in * subject.d_sae * cost.sae_tokens
        if first and cost.llm_tokens:
            parameters = counts[subject.model_name]
            if parameters is None:
                return f"unknown, as is the size of {subject.model_name}"
            operations += 2.0 * parameters * cost.llm_tokens
    seconds = operations / (_EFFICIENCY * _speed(evaluation.request.device))
    return f"about {_duration(seconds)} on {evaluation.request.device}, besides loading and probes"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _speed(device: str) -> float:
    """Floating-point operations per second of a product of two matrices."""
    import torch

    n = 1024 if device == "cpu" else 4096
    matrix = torch.ones(n, n, device=device)
    float((matrix @ matrix)[0, 0])  # a warm-up; float() waits for the device
    begin, times = time.perf_counter(), 3
    for _ in range(times):
        product = matrix @ matrix
    float(product[0, 0])
    return 2.0 * n**3 * times / (time.perf_counter() - begin)


def _parameters(model_name: str) -> int | None:
    """How many parameters a language model has, if that is known without its weights."""
    from sae_plugins import world

    if model_name == world.NAME:
        return sum(file.stat().st_size for file in world.path().glob("*.safetensors")) // 4
    try:
        from huggingface_hub import model_info
        from transformer_lens.loading_from_pretrained import get_official_model_name

        found = model_info(get_official_model_name(model_name), timeout=5).safetensors
    except Exception:  # unknown there, or nobody answers
        return None
    return found.total if found else None
