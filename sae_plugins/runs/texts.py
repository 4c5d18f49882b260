"""The text of a run: what it trains on, and what is held out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from sae_plugins import world
from sae_plugins.base.errors import PluginError, prefixed
from sae_plugins.runs.models import check_range, model_facts
from sae_plugins.runs.setup import SAELensSettings

SHUFFLE_BUFFER = 10_000
"""Documents among which a streamed dataset is shuffled."""
TOKENS = ("tokens", "input_ids")
"""Columns that SAELens takes for text in tokens."""


@dataclass(frozen=True)
class TextSplits:
    """What the model reads: documents to train on, and disjoint ones to score the SAE on."""

    train: Any
    heldout: Any


def load_text(settings: SAELensSettings, model: Any, vocabulary: int | None = None) -> TextSplits:
    """The training text, in the seed's order, and held-out text, which no seed changes.

    The first documents of a dataset are held out, as many as the held-out tokens need.

    Args:
        settings: the run's.
        model: it reads the text.
        vocabulary: how many tokens it has, if that is known.

    Raises:
        PluginError: the dataset cannot be loaded, is too small, or not for this model.
    """
    if settings.model_name == world.NAME and not settings.runner.get("dataset_path"):
        train = world.load_text("train").shuffle(seed=settings.seed)
        heldout = world.load_text("heldout") if settings.heldout_tokens else None
        return TextSplits(_with_plain_lists(train), _with_plain_lists(heldout))
    rows = load_dataset(settings)
    _check_rows(rows, settings, model, vocabulary)
    held = _first_documents(rows, settings, model)
    if isinstance(rows, datasets.Dataset):
        if 2 * len(held) > len(rows):
            raise PluginError(
                f"--dataset_path {settings.runner['dataset_path']} is too small: scoring the "
                f"SAE on {settings.heldout_tokens} tokens takes {len(held)} of its {len(rows)} "
                "documents; lower --heldout_tokens"
            )
        train = rows.select(range(len(held), len(rows))).shuffle(seed=settings.seed)
    else:
        train = rows.skip(len(held)).shuffle(seed=settings.seed, buffer_size=SHUFFLE_BUFFER)
    return TextSplits(
        _with_plain_lists(train),
        _with_plain_lists(datasets.Dataset.from_list(held) if held else None),
    )


def text_facts(settings: SAELensSettings) -> list[Any]:
    """What the text depends on."""
    names = ("dataset_path", "dataset_revision", "streaming")
    sizes = ("store_batch_size_prompts", "context_size")
    of_runner = [settings.runner.get(name) for name in (*names, *sizes)]
    return [settings.seed, settings.heldout_tokens, *of_runner, *model_facts(settings)]


def _check_rows(rows: Any, settings: SAELensSettings, model: Any, vocabulary: int | None) -> None:
    """Refuse text where the model has no tokenizer, and tokens that it does not have.

    What a stream holds further on shows only when it is read.
    """
    columns = rows.column_names or list(next(iter(rows), {}))
    tokens = next((name for name in TOKENS if name in columns), None)
    if "text" in columns and tokens is None and getattr(model, "tokenizer", None) is None:
        raise PluginError(
            f"--model_name {settings.model_name} has no tokenizer, and --dataset_path "
            f"{settings.runner['dataset_path']} no column {' or '.join(TOKENS)}: save the model's "
            "tokenizer there with its save_pretrained"
        )
    if tokens is None or vocabulary is None or not isinstance(rows, datasets.Dataset):
        return
    from pyarrow import compute

    found = compute.min_max(compute.list_flatten(rows.data.column(tokens)))
    if found["min"].is_valid:
        with prefixed(f"--dataset_path {settings.runner['dataset_path']}"):
            lowest, highest = found["min"].as_py(), found["max"].as_py()
            check_range(lowest, highest, vocabulary, settings.model_name)


def _with_plain_lists(rows: Any) -> Any:
    """The rows such that SAELens reads tokens as plain lists.

    It has a `Dataset` with tokens give tensors, for which datasets 3 imports a part of torchvision
    that newer ones lack; an `IterableDataset` it leaves alone.
    """
    if isinstance(rows, datasets.Dataset) and {*TOKENS} & {*rows.column_names}:
        return rows.to_iterable_dataset()
    return rows


def load_dataset(settings: SAELensSettings) -> Any:
    """The dataset at `dataset_path`, a folder or a name on the Hub; its code is never run."""
    path = os.path.expanduser(str(settings.runner["dataset_path"]))
    try:
        if (Path(path) / "dataset_info.json").is_file():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(
            path,
            split="train",
            streaming=bool(settings.runner.get("streaming", True)),
            revision=settings.runner.get("dataset_revision"),
            trust_remote_code=False,
        )
    except Exception as error:  # network, hub and file errors of many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PluginError(
            f"--dataset_path {path} cannot be loaded: neither a folder with a dataset nor a split "
            f"'train' on the Hugging Face Hub ({reason[:300]})"
        ) from error


def _first_documents(rows: Any, settings: SAELensSettings, model: Any) -> list[dict[str, Any]]:
    """As many documents as `heldout_tokens` tokens and one batch of the model need."""
    if not settings.heldout_tokens:
        return []
    prompts = settings.runner.get("store_batch_size_prompts", 32)
    wanted = settings.heldout_tokens + prompts * settings.runner.get("context_size", 128)
    held: list[dict[str, Any]] = []
    for row in rows:
        if wanted <= 0:
            break
        column = next((name for name in (*TOKENS, "text", "problem") if name in row), None)
        if column is None:
            raise PluginError(
                f"--dataset_path {settings.runner['dataset_path']} has the columns "
                f"{', '.join(row)}: one must be called text, tokens or input_ids"
            )
        held.append({column: row[column]})
        wanted -= _length(row[column], model)
    return held


def _length(document: Any, model: Any) -> int:
    """Tokens of a text or of a tokenised document."""
    if isinstance(document, str):
        tokens = model.to_tokens(document, truncate=False, move_to_device=False, prepend_bos=False)
        return int(tokens.shape[1])
    return len(document)
