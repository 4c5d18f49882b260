"""SAEBench's wrapper of sae-probes, run for one SAE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae_plugins.base.files import versions
from sae_plugins.base.fingerprints import fingerprint, hash_of
from sae_plugins.base.kept import Cached
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.saebench.isolation import only, only_json, running


def run_sae_probes(
    sae: Any, name: str, bench: Bench, config: Mapping[str, Any], context_length: int
) -> tuple[dict[str, Any], str]:
    """SAEBench's result, as a dict, and its JSON.

    Args:
        sae: a copy in float32, which SAEBench may change.
        name: what it is called in the JSON.
        bench: the model.
        config: SAEBench's, but for folders and the model's name.
        context_length: tokens of a text; sae-probes itself always takes 1024.
    """
    from sae_bench.evals.sparse_probing_sae_probes import main
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import (
        SparseProbingSaeProbesEvalConfig,
    )
    from sae_probes import generate_model_activations

    with running(bench, generate_model_activations) as folder:
        eval_config = SparseProbingSaeProbesEvalConfig(
            model_name=bench.model.label,
            # relative to the scratch folder, since the JSON names them
            results_path="probes",
            model_cache_path="activations",
            **config,
        )
        with _as_it_was(bench.model.hooked.tokenizer), _keeping(bench, main, context_length):
            results = main.run_eval(
                eval_config, [(name, sae)], bench.model.device, str(folder / "results")
            )
        return only(results), only_json(folder)


@contextmanager
def _as_it_was(tokenizer: Any) -> Iterator[None]:
    """Put back the sides of a tokenizer, which sae-probes changes for good (hazard 28)."""
    sides = {name: getattr(tokenizer, name) for name in ("truncation_side", "padding_side")}
    with replaced(tokenizer, **sides):
        yield


@contextmanager
def _keeping(bench: Bench, main: Any, context_length: int) -> Iterator[None]:
    """Compute the language model's part, activations and probes on them, only once."""
    from sae_probes import generate_model_activations

    own_generate = generate_model_activations.generate_single_dataset_activations
    own_baselines = main.run_baseline_evals
    keys: dict[str, str] = {}

    def generate(**given: Any) -> None:
        (hook_name,) = given["hook_names"]
        source = Path(given["dataset_path"])
        dataset = source.name.removesuffix(".csv.zst")
        bench.stage(f"activations of {dataset}")
        folder = Path(given["model_cache_path"]) / f"model_activations_{given['model_name']}"
        file = folder / f"{dataset}_{hook_name}.pt"

        def compute() -> Cached:
            own_generate(**{**given, "max_seq_len": context_length})
            # as float32, which all that follows takes for granted
            return {"acts": torch.load(file, weights_only=True).float()}, {}

        keys[dataset] = fingerprint(
            "sae-probes", versions(("sae-probes",)), bench.model.hash, bench.model.dtype,
            hook_name, context_length, given["batch_size"], hash_of(source),
        )  # fmt: skip
        tensors, _ = bench.cache.get("dataset_activations", keys[dataset], compute)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tensors["acts"], file)

    def baselines(**given: Any) -> None:
        for dataset in given["datasets"]:
            bench.stage(f"the language model's probes on {dataset}")
            of_one = {**given, "datasets": [dataset]}
            key = fingerprint("baseline", keys[dataset], given["method"], given["seed"])
            _kept_baseline(bench, key, partial(own_baselines, **of_one), _file_of(of_one))

    with (
        replaced(generate_model_activations, generate_single_dataset_activations=generate),
        replaced(main, run_baseline_evals=baselines),
    ):
        yield


def _file_of(given: Mapping[str, Any]) -> Path:
    """Where sae-probes writes what it finds on the language model's own activations."""
    from sae_probes.run_baselines import get_baseline_save_path

    (dataset,) = given["datasets"]
    path: Path = get_baseline_save_path(
        dataset, given["hook_name"], given["method"], given["model_name"], given["results_path"]
    )
    return path


def _kept_baseline(bench: Bench, key: str, run: partial[None], file: Path) -> None:
    def compute() -> Cached:
        run()
        return {}, {"json": file.read_text("utf-8")}

    _, texts = bench.cache.get("probes", key, compute)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(texts["json"], "utf-8")
