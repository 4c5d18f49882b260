"""What SAEBench knows of models, datasets and its own results, and what it cannot evaluate."""

from __future__ import annotations

import contextlib
import re
from dataclasses import is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from sae_plugins.base.errors import PluginError
from sae_plugins.eval_suites.saebench.installed import is_installed

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.subjects import Subject


def default_dtype(model_name: str) -> str:
    """The dtype in which a language model is run: SAEBench's, else the one of its config."""
    from sae_plugins.runs.language_models.choice import loader_of

    known = _of_model("LLM_NAME_TO_DTYPE", model_name)
    if known is None:
        with contextlib.suppress(PluginError):  # which is said where it is loaded
            known = loader_of(model_name).dtype
    return str(known or "float32")


def bytes_of_activation(subject: Subject) -> int:
    """Bytes of one activation at an SAE's hook, as its language model is run."""
    dtype: torch.dtype = getattr(torch, default_dtype(subject.model_name))
    return subject.d_in * dtype.itemsize


def default_batch_size(model_name: str) -> int:
    """The prompts that SAEBench gives to a language model at once."""
    return int(_of_model("LLM_NAME_TO_BATCH_SIZE", model_name) or 32)


def _of_model(table: str, model_name: str) -> Any:
    """What a table of SAEBench's says of a model, which it names without an owner; else None."""
    if not is_installed():
        return None
    from sae_bench.sae_bench_utils import activation_collection

    return getattr(activation_collection, table).get(model_name.rpartition("/")[2])


def reported_numbers(evaluation: str, metric: str) -> list[int]:
    """Each k for which the result of an evaluation of SAEBench has a field.

    Args:
        evaluation: its package below `sae_bench.evals`, such as "scr_and_tpp".
        metric: the field, such as "scr_metric_threshold_{k}".
    """
    output = import_module(f"sae_bench.evals.{evaluation}.eval_output")
    pattern = re.escape(metric).replace(re.escape("{k}"), r"(\d+)")
    names = {n for v in vars(output).values() if is_dataclass(v) for n in v.__dataclass_fields__}
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(pattern, name)))


def has_attribute(dataset: str) -> bool:
    """Whether a dataset has a second column of labels: a gender or a rating."""
    from sae_bench.sae_bench_utils.dataset_info import dataset_metadata

    return dataset in dataset_metadata


def classes_of(name: str) -> list[Any]:
    """The classes of a sparse probing dataset, as its rows have them.

    Those of the sentiment dataset are its categories: its ratings are an attribute.
    """
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset

    classes = chosen_classes_per_dataset[name.removesuffix("_sentiment")]
    return [int(c) if c.isdigit() else c for c in classes]


def numbers_of(dataset: str, classes: list[str]) -> tuple[int, ...]:
    """The numbers, in the first column of a dataset, of classes named in words."""
    from sae_bench.sae_bench_utils.dataset_info import dataset_metadata

    numbers = dataset_metadata[dataset]["column1_mapping"]
    return tuple(numbers[name] for name in classes)


def names_of(name: str) -> dict[str, str]:
    """The classes of a dataset in words, by what SAEBench calls them."""
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset, dataset_metadata

    numbers = dataset_metadata[name.partition("_class_set")[0]]["column1_mapping"]
    words = {str(number): word for word, number in numbers.items()}
    return {chosen: words[chosen] for chosen in chosen_classes_per_dataset[name]}


def dtype_of_first_letters() -> str:
    """The dtype of SAEBench's first-letter probe, whatever the language model's (hazard 21)."""
    from sae_bench.evals.absorption.common import DEFAULT_DTYPE

    return str(DEFAULT_DTYPE).removeprefix("torch.")


def refuse_other_hooks(subject: Subject, does: str) -> str | None:
    """Why an SAE does not fit what SAEBench `does` at the residual stream after a layer."""
    expected = f"blocks.{subject.hook_layer}.hook_resid_post"
    if subject.hook_name == expected and subject.hook_head_index is None:
        return None
    return f"SAEBench {does} {expected}, whatever the SAE's hook, which is {subject.hook_name}"


def refuse_heads(subject: Subject) -> str | None:
    """Why an SAE cannot be probed: all but core take activations for [batch, tokens, d_in]."""
    per_head = re.search(r"hook_[qkvz]$", subject.hook_name)
    if per_head is None and subject.hook_head_index is None:
        return None
    return f"SAEBench evaluates SAEs of attention heads ({subject.hook_name}) with core only"
