"""SAEBench's own entry points as their users call them, for comparison: nothing of ours in between.

All that is replaced is where the language model and the data come from, since neither can be had
from the Hub here, and the type check with which sparse probing fails on every fresh install.
"""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sae_plugins.base.patches import replaced
from sae_plugins.base.seeds import seed_everything
from sae_plugins.eval_suites.absorption import POSITION, TEMPLATE
from sae_plugins.eval_suites.saebench.absorption import sorted_vocabulary
from sae_plugins.eval_suites.saebench.facts import default_batch_size
from sae_plugins.eval_suites.saebench.isolation import undisturbed
from sae_plugins.eval_suites.scr import PAIRS

SAEs = list[tuple[str, Any]]


def run(
    suite: Any, saes: SAEs, model: Any, data: Any, settings: Any, seed: int,
    folder: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    """Metrics by name, of each SAE, as one call of SAEBench's entry point for `suite` gives them.

    The function below that calls it is named as the suite.

    Artifacts go to `folder`: a call into an empty one shares nothing with others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    call = globals()[f"_{suite.name.replace('-', '_')}"]
    with undisturbed(), contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        with contextlib.redirect_stderr(io.StringIO()):
            return call(saes, model, data, settings, seed, folder)


@contextlib.contextmanager
def _given(main: Any, model: Any) -> Iterator[None]:
    class Given:
        @staticmethod
        def from_pretrained_no_processing(*_: Any, **__: Any) -> Any:
            return model.hooked

    with replaced(main, HookedTransformer=Given):
        yield


@contextlib.contextmanager
def _reading(data: Any, need: Any) -> Iterator[None]:
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.evals.sparse_probing import probe_training
    from sae_bench.sae_bench_utils import dataset_utils

    def load_dataset(name: str, config: str | None = None, **_: Any) -> Any:
        return data.load(name, config, need(name))

    own = probe_training.train_sklearn_probe
    with (
        replaced(dataset_creation, load_dataset=load_dataset),
        replaced(dataset_utils, load_dataset=load_dataset),
        replaced(probe_training, train_sklearn_probe=own.__wrapped__),
    ):
        yield


def _core(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    from sae_bench.evals.core import main
    from sae_lens.training import activations_store

    text = data.text(settings.dataset, settings.skip_documents or 0, seed)
    with _given(main, model), replaced(activations_store, load_dataset=lambda *_, **__: text):
        results = main.multiple_evals(
            saes,
            n_eval_reconstruction_batches=settings.n_eval_reconstruction_batches,
            n_eval_sparsity_variance_batches=settings.n_eval_sparsity_variance_batches,
            eval_batch_size_prompts=settings.batch_size_prompts,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
            context_size=settings.context_size,
            output_folder=str(folder / "core"),
            device=model.device,
        )
    return [{n: v for group in r["metrics"].values() for n, v in group.items()} for r in results]


def _sparse_probing(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    from sae_plugins.eval_suites import sparse_probing

    config = SparseProbingEvalConfig(
        random_seed=seed, model_name=model.name, llm_dtype=model.dtype,
        llm_batch_size=default_batch_size(model.name),
        dataset_names=list(settings.dataset_names), k_values=list(settings.k_values),
        probe_train_set_size=settings.probe_train_set_size,
        probe_test_set_size=settings.probe_test_set_size,
        context_length=settings.context_length, sae_batch_size=settings.sae_batch_size,
    )  # fmt: skip
    with (
        _given(main, model),
        _reading(data, lambda name: sparse_probing._need(name, settings)),
    ):
        results = main.run_eval(config, saes, model.device, str(folder / "results"))
    return [_flat(result) for result in results.values()]


def _scr(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    from sae_plugins.eval_suites import scr

    pairs: dict[str, list[tuple[str, ...]]] = {}
    for pair in settings.pairs:
        pairs.setdefault(PAIRS[pair], []).append(tuple(pair.split("/")))
    of_scr = {"perform_scr": True, "dataset_names": list(pairs), "column1_vals_lookup": pairs}
    return _ablated(saes, model, data, settings, seed, folder, scr._need, of_scr)


def _tpp(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    from sae_plugins.eval_suites import tpp

    of_tpp = {"perform_scr": False, "dataset_names": list(settings.dataset_names)}
    return _ablated(saes, model, data, settings, seed, folder, tpp._need, of_tpp)


def _ablated(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path,
    need: Callable[[str, Any], Any], which: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    config = ScrAndTppEvalConfig(
        random_seed=seed, model_name=model.name, llm_dtype=model.dtype,
        llm_batch_size=default_batch_size(model.name), n_values=list(settings.n_values),
        train_set_size=settings.train_set_size, test_set_size=settings.test_set_size,
        context_length=settings.context_length, sae_batch_size=settings.sae_batch_size, **which,
    )  # fmt: skip
    with _given(main, model), _reading(data, lambda name: need(name, settings)):
        results = main.run_eval(config, saes, model.device, str(folder / "results"))
    return [_flat(result) for result in results.values()]


def _sae_probes(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """It puts nothing back, so the tokeniser's sides are put back here; no text may be too long."""
    from sae_bench.evals.sparse_probing_sae_probes import main
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import (
        SparseProbingSaeProbesEvalConfig,
    )
    from sae_probes import generate_model_activations

    config = SparseProbingSaeProbesEvalConfig(
        model_name=model.name, random_seed=seed, dataset_names=list(settings.dataset_names),
        reg_type=settings.reg_type, ks=list(settings.ks),
    )  # fmt: skip
    tokenizer = model.hooked.tokenizer
    sides = {name: getattr(tokenizer, name) for name in ("truncation_side", "padding_side")}
    with _given(generate_model_activations, model), replaced(tokenizer, **sides):
        results = main.run_eval(config, saes, model.device, str(folder / "results"))
    return [_flat(result) for result in results.values()]


def _autointerp(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """It knows one address and one model; the address is replaced here."""
    from sae_bench.evals.autointerp import main
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
    from sae_bench.sae_bench_utils import dataset_utils

    text = data.text(settings.dataset, 0, seed)
    config = AutoInterpEvalConfig(
        random_seed=seed, model_name=model.name, llm_dtype=model.dtype,
        llm_batch_size=default_batch_size(model.name), n_latents=settings.n_latents,
        dead_latent_threshold=settings.dead_latent_threshold, total_tokens=settings.total_tokens,
        dataset_name=settings.dataset, llm_context_size=settings.context_length,
    )  # fmt: skip
    there = functools.partial(main.OpenAI, base_url=settings.endpoint)
    with (
        _given(main, model),
        replaced(dataset_utils, load_dataset=lambda *_, **__: text),
        replaced(main, OpenAI=there),
    ):
        results = main.run_eval(config, saes, model.device, "no key", str(folder / "results"))
    return [_flat(result) for result in results.values()]


def _ravel(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """With layers that give tuples, without which it fails on transformers of today (hazard 37)."""
    from sae_bench.evals.ravel import main
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
    from sae_bench.sae_bench_utils import activation_collection

    from sae_plugins import world
    from sae_plugins.eval_suites.inputs.data import RAVEL
    from sae_plugins.eval_suites.ravel import _selection
    from sae_plugins.eval_suites.saebench.ravel import _tuples, files_of

    selection = _selection(settings.attributes)
    config = RAVELEvalConfig(
        model_name=model.name, llm_dtype=model.dtype, random_seed=seed,
        llm_batch_size=default_batch_size(model.name) // 4, artifact_dir=str(folder / "artifacts"),
        entity_attribute_selection=selection, **settings.model_dump(exclude={"attributes"}),
    )  # fmt: skip
    base = folder / "artifacts" / "base"
    base.mkdir(parents=True)
    for entity in selection:
        for name in files_of(entity):
            (base / name).write_text(data.file(RAVEL, name))

    class Model:
        from_pretrained = staticmethod(lambda *_, **__: world.load_hf_model())

    class Tokenizer:
        from_pretrained = staticmethod(lambda *_, **__: world.load_tokenizer())

    own = activation_collection.get_module
    with (
        replaced(
            main,
            AutoModelForCausalLM=Model,
            AutoTokenizer=Tokenizer,
            LLM_NAME_MAP={model.name: model.name},
        ),
        replaced(activation_collection, get_module=_tuples(own)),
    ):
        results = main.run_eval(config, saes, model.device, str(folder / "results"))
    return [_flat(result) for result in results.values()]


def _unlearning(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """In a folder where the corpus is in the place in which it lies in SAEBench's repository."""
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.utils import feature_activation, metrics

    def load_dataset(name: str, config: str, split: str) -> Any:
        return data.table({"wikitext": "Salesforce/wikitext"}.get(name, name), config)

    place = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
    place.parent.mkdir(parents=True)
    place.symlink_to(data.path("cais/wmdp-corpora", place.name))
    config = UnlearningEvalConfig(
        model_name=model.name, llm_dtype=model.dtype, random_seed=seed,
        llm_batch_size=default_batch_size(model.name) // 8, **settings.model_dump(),
    )  # fmt: skip
    with (
        _given(main, model),
        replaced(feature_activation, load_dataset=load_dataset),
        replaced(metrics, load_dataset=load_dataset),
    ):
        results = main.run_eval(config, saes, model.device, str(folder / "results"))
    return [_flat(result) for result in results.values()]


def _absorption(
    saes: SAEs, model: Any, data: Any, settings: Any, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """With a sorted vocabulary and seeds, without which no two calls agree, and our folders."""
    from sae_bench.evals.absorption import main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    config = AbsorptionEvalConfig(
        random_seed=seed, model_name=model.name, llm_dtype=model.dtype, prompt_template=TEMPLATE,
        prompt_token_pos=POSITION, min_feats_for_eval=settings.min_letters,
        llm_batch_size=default_batch_size(model.name),
        **settings.model_dump(exclude={"min_letters", "precalculate_codes"}),
    )  # fmt: skip
    own_probing = main.run_k_sparse_probing_experiment
    own_absorption = main.run_feature_absortion_experiment
    probing, probes = {"experiment_dir": folder / "k_sparse"}, {"probes_dir": folder / "probes"}
    with (
        _given(main, model),
        sorted_vocabulary(),
        replaced(
            main,
            run_k_sparse_probing_experiment=lambda **k: own_probing(**k, **probing, **probes),
            run_feature_absortion_experiment=lambda **k: own_absorption(
                **k, **probes, experiment_dir=folder / "absorption",
                sparse_probing_experiment_dir=folder / "k_sparse",
            ),
        ),
    ):  # fmt: skip
        (folder / "results").mkdir(exist_ok=True)
        seed_everything(seed)
        torch.set_grad_enabled(True)
        results = main.run_eval(config, saes, model.device, str(folder / "results"))
    return [_flat(result) for result in results.values()]


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    groups = result["eval_result_metrics"].values()
    return {name: value for group in groups for name, value in group.items() if value is not None}
