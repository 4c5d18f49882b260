"""Tokens in place of text: are they of this model, and of this length?"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download
from transformers import AutoTokenizer

from sae_plugins.base.errors import PluginError, prefixed
from sae_plugins.runs.models import check_range
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.texts.columns import Column
from sae_plugins.runs.texts.found import TOKENIZATION

logger = logging.getLogger(__name__)


def check_tokenized(
    rows: Any, column: Column, settings: SAELensSettings, model: Any, vocabulary: int | None
) -> None:
    """Refuse tokens of which it shows, before they are read, that they are not for this run.

    What a stream holds further on shows only when it is read.

    Raises:
        PluginError: they are of another model, or SAELens would have to read them as texts.
    """
    _check_texts_alone(settings)
    _check_tokenizer(settings, model)
    if not isinstance(rows, datasets.Dataset) or not _are_tokens(rows.features[column.name]):
        return
    from pyarrow import compute

    tokens = rows.data.column(column.name)
    found = compute.min_max(compute.list_flatten(tokens))
    if vocabulary is not None and found["min"].is_valid:
        with prefixed(f"--dataset_path {settings.runner['dataset_path']}"):
            lowest, highest = found["min"].as_py(), found["max"].as_py()
            check_range(lowest, highest, vocabulary, settings.model_name)
    longest = compute.max(compute.list_value_length(tokens)).as_py() or 0
    if longest > column.length:
        logger.warning(
            "--dataset_path %s has rows of up to %s tokens, of which a prompt of --context_size %s "
            "has the first ones: the others are not read",
            *(settings.runner["dataset_path"], longest, column.length),
        )


def _are_tokens(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return str(getattr(inner, "dtype", "")).startswith(("int", "uint"))


def _check_texts_alone(settings: SAELensSettings) -> None:
    """Refuse what SAELens does with texts alone."""
    for name, default in (("disable_concat_sequences", False), ("sequence_separator_token", "bos")):
        value = settings.runner.get(name, default)
        if value != default:
            raise PluginError(
                f"--{name} {str(value).lower()}: --dataset_path {settings.runner['dataset_path']} "
                "holds tokens, which are read as they are, not texts; leave it out"
            )


def _check_tokenizer(settings: SAELensSettings, model: Any) -> None:
    """Refuse tokens of another tokenizer, where the dataset says whose they are.

    SAELens makes this check for datasets that it loads itself, by the file that its
    `PretokenizeRunner` leaves. A file or a tokenizer that cannot be had is no reason to refuse.
    """
    path = str(Path(settings.runner["dataset_path"]).expanduser())
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return
    try:
        folder = Path(path)
        file = (folder.parent if folder.is_file() else folder) / TOKENIZATION
        if not Path(path).exists():
            file = Path(hf_hub_download(path, TOKENIZATION, repo_type="dataset"))
        name = json.loads(file.read_text("utf-8"))["tokenizer_name"]
        theirs = AutoTokenizer.from_pretrained(name, trust_remote_code=False).get_vocab()
    except Exception:  # of the network, the Hub and the disk
        return
    if theirs != tokenizer.get_vocab():
        raise PluginError(
            f"--dataset_path {path} holds the tokens of {name}, and {settings.model_name} has "
            "another tokenizer; choose another dataset, or tokenize the texts with this one"
        )
