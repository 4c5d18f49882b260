"""SAEBench's RAVEL, run for one SAE on transformers' own language model."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae_plugins.base.errors import PluginError, SuiteError
from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.kept import Cached
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.data import RAVEL
from sae_plugins.eval_suites.saebench.isolation import only, only_json, running
from sae_plugins.runs.language_models.choice import transformers_model

FILES = ("attribute_to_prompts", "prompt_to_split", "entity_attributes", "entity_to_split")
ARTIFACTS = "artifacts"
"""Relative to the scratch folder, since the JSON names it."""


@dataclass(frozen=True)
class Known:
    """A language model, and the questions that it answers rightly."""

    model: Any
    tokenizer: Any
    prompts: Mapping[str, str]
    """SAEBench's file of them, by the entity's class."""


def files_of(entity: str) -> list[str]:
    """The names of the files about a class of entities."""
    return [f"ravel_{entity}_{file}.json" for file in FILES]


def ask(bench: Bench, selection: Mapping[str, Sequence[str]], config: Mapping[str, Any]) -> Known:
    """Ask the language model about all entities, once for all SAEs.

    Raises:
        SuiteError: SAEBench cannot intervene in it, or it knows too little.
    """
    bench.stage(f"loading {bench.model.name} by transformers")
    model, tokenizer = _loaded(bench)
    prompts = {}
    for entity, attributes in selection.items():
        bench.stage(f"what {bench.model.name} knows of {entity}")
        texts = {name: bench.data.file(RAVEL, name) for name in files_of(entity)}
        compute = partial(_answered, bench, model, tokenizer, entity, attributes, config, texts)
        relevant = {k: config[k] for k in ("top_n_entities", "n_generated_tokens")}
        key = fingerprint(
            "ravel", bench.model.hash, bench.model.dtype, entity, list(attributes), relevant,
            config["llm_batch_size"], texts,
        )  # fmt: skip
        prompts[entity] = bench.cache.get("ravel_prompts", key, compute)[1]["json"]
        _check_known(bench.model.name, entity, attributes, json.loads(prompts[entity])["prompts"])
    return Known(model, tokenizer, prompts)


def run_ravel(
    sae: Any, name: str, bench: Bench, asked: Known, selection: Mapping[str, Sequence[str]],
    config: Mapping[str, Any],
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """SAEBench's result, as a dict, and its JSON.

    Args:
        sae: a copy, which SAEBench may change.
        name: what it is called in the JSON.
        bench: the model.
        asked: what `ask` found.
        selection: attributes by class of entities.
        config: SAEBench's, but for the model's name and dtype, the selection and folders.
    """
    with _running(bench, asked.model, asked.tokenizer, selection, config) as (main, eval_config):
        for entity, text in asked.prompts.items():
            _file_of(eval_config, entity).write_text(text, "utf-8")
        folder = Path.cwd()
        results = main.run_eval(
            eval_config, [(name, sae)], bench.model.device, str(folder / "results")
        )
        return only(results), only_json(folder)


def _loaded(bench: Bench) -> tuple[Any, Any]:
    """Transformers' own model, which is another than that with TransformerLens' hooks."""
    import torch
    from sae_bench.sae_bench_utils import activation_collection

    try:
        model, tokenizer = transformers_model(
            bench.model.name, bench.model.device, getattr(torch, bench.model.dtype)
        )
    except PluginError as error:
        raise SuiteError(f"language model {error}") from error
    try:
        activation_collection.get_module(model, 0)
    except ValueError:
        kind = model.config.architectures[0]
        raise SuiteError(
            f"{bench.model.name} is a {kind}, and SAEBench's ravel intervenes in "
            "Gemma2ForCausalLM and GPTNeoXForCausalLM only"
        ) from None
    if tokenizer.encode("a")[0] != tokenizer.bos_token_id:
        raise SuiteError(
            f"the tokenizer of {bench.model.name} adds no token at the beginning, and SAEBench's "
            "ravel would intervene one token after the entity's last (hazard 38)"
        )
    return model, tokenizer


def _answered(
    bench: Bench, model: Any, tokenizer: Any, entity: str, attributes: Sequence[str],
    config: Mapping[str, Any], texts: Mapping[str, str],
) -> Cached:  # fmt: skip
    """The questions about a class that the model answers rightly, as SAEBench asks them."""
    selection = {entity: attributes}
    with _running(bench, model, tokenizer, selection, config) as (main, eval_config):
        base = Path(eval_config.artifact_dir) / "base"
        base.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (base / name).write_text(text, "utf-8")
        nothing = dict.fromkeys(("cause_score", "isolation_score", "disentangle_score"), 0.0)
        with replaced(main, run_eval_single_cause_attribute=lambda *_, **__: nothing):
            main.run_eval_single_dataset(entity, eval_config, None, model)
        return {}, {"json": _file_of(eval_config, entity).read_text("utf-8")}


def _check_known(
    model_name: str, entity: str, attributes: Sequence[str], prompts: Sequence[Mapping[str, Any]]
) -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        answers[prompt["attribute_type"]].add(prompt["attribute_label"])
    for attribute in attributes:
        if len(answers[attribute]) < 2:
            raise SuiteError(
                f"{model_name} knows too little: of {entity}/{attribute} it gives "
                f"{len(answers[attribute])} right answers that differ, and 2 are needed"
            )


def begin_alike(prompts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each attribute, the share of the pairs with other answers that begin with one token.

    SAEBench takes them for pairs about isolation (hazard 39).
    """
    shares = {}
    for attribute in dict.fromkeys(prompt["attribute_type"] for prompt in prompts):
        of_it = [prompt for prompt in prompts if prompt["attribute_type"] == attribute]
        labels = Counter(prompt["attribute_label"] for prompt in of_it)
        firsts = Counter(prompt["first_generated_token_id"] for prompt in of_it)
        both = Counter((p["attribute_label"], p["first_generated_token_id"]) for p in of_it)
        squares = [sum(n * n for n in counts.values()) for counts in (labels, firsts, both)]
        differ = len(of_it) ** 2 - squares[0]
        shares[attribute] = (squares[1] - squares[2]) / differ if differ else 0.0
    return shares


@contextmanager
def _running(
    bench: Bench, model: Any, tokenizer: Any, selection: Mapping[str, Sequence[str]],
    config: Mapping[str, Any],
) -> Iterator[tuple[Any, Any]]:  # fmt: skip
    """SAEBench's module with our model and tokenizer, and a config of it."""
    from sae_bench.evals.ravel import main
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
    from sae_bench.sae_bench_utils import activation_collection

    name = bench.model.label.replace("/", "--")
    eval_config = RAVELEvalConfig(
        model_name=name, llm_dtype=bench.model.dtype, artifact_dir=ARTIFACTS,
        entity_attribute_selection={key: list(value) for key, value in selection.items()},
        **config,
    )  # fmt: skip

    def given(what: Any) -> Any:
        return SimpleNamespace(from_pretrained=lambda *_, **__: what)

    with (
        running(bench),
        replaced(
            main,
            LLM_NAME_MAP={name: name},
            AutoModelForCausalLM=given(model),
            AutoTokenizer=given(tokenizer),
        ),
        replaced(activation_collection, get_module=_tuples(activation_collection.get_module)),
    ):
        os.makedirs(ARTIFACTS, exist_ok=True)
        yield main, eval_config


def _file_of(config: Any, entity: str) -> Path:
    """Where SAEBench looks for the questions that are answered rightly."""
    from sae_bench.evals.ravel.instance import get_instance_name

    name: str = get_instance_name(
        entity, config.model_name, config.full_dataset_downsample, config.top_n_entities
    )
    return Path(config.artifact_dir) / name


def _tuples(own: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Layers whose hooks see tuples, as older versions of transformers gave them (hazard 37)."""

    class Layer:
        def __init__(self, module: Any) -> None:
            self._module = module

        def register_forward_hook(self, hook: Callable[..., Any]) -> Any:
            def called(module: Any, inputs: Any, outputs: Any) -> Any:
                if isinstance(outputs, tuple):
                    return hook(module, inputs, outputs)
                return hook(module, inputs, (outputs,))[0]

            return self._module.register_forward_hook(called)

    return lambda model, layer: Layer(own(model, layer))
