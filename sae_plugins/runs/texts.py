"""The text of a run: what it trains on, and what is held out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import xxhash
from huggingface_hub import hf_hub_download
from sae_lens.tokenization_and_batching import tokenize_with_chat_template
from transformers import AutoTokenizer

from sae_plugins import world
from sae_plugins.base.errors import PluginError, prefixed
from sae_plugins.runs.models import check_range, model_facts
from sae_plugins.runs.setup import SAELensSettings

TOKENS = ("tokens", "input_ids")
"""Columns that SAELens takes for text in tokens."""
TOKENIZATION = "sae_lens.json"
"""Where SAELens says how it tokenized a dataset."""
SHUFFLE_BUFFER = 10_000
"""Documents among which a streamed dataset is shuffled."""


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
    column = _column(rows, settings)
    _check_rows(rows, column, settings, model, vocabulary)
    held = _first_documents(rows, column, settings, model)
    if isinstance(rows, datasets.Dataset):
        if 2 * len(held) > len(rows):
            raise PluginError(
                f"--dataset_path {settings.runner['dataset_path']} is too small: scoring the "
                f"SAE on {settings.heldout_tokens} tokens takes {len(held)} of its {len(rows)} "
                "documents; lower --heldout_tokens"
            )
        train = rows.select(range(len(held), len(rows))).shuffle(seed=settings.seed)
    else:
        # no skip(): it would pin the order of the shards, so that all seeds begin with the first
        train = rows.shuffle(seed=settings.seed, buffer_size=SHUFFLE_BUFFER)
    return TextSplits(
        _with_plain_lists(_without(held, train, column)),
        _with_plain_lists(
            datasets.Dataset.from_list([{column: document} for document in held]) if held else None
        ),
    )


def _without(held: Sequence[Any], rows: Any, column: str) -> Any:
    """The rows whose documents are none of these, each told from others by a hash."""
    if not held:
        return rows
    if isinstance(rows, datasets.Dataset):
        rows = rows.to_iterable_dataset()  # filters while it is read
    digests = {_digest(document) for document in held}
    return rows.filter(lambda document: _digest(document) not in digests, input_columns=[column])


def _digest(document: Any) -> bytes:
    text = document if isinstance(document, str) else repr(document)
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def text_facts(settings: SAELensSettings) -> list[Any]:
    """What the text depends on."""
    names = ("dataset_path", "dataset_revision", "streaming")
    sizes = ("store_batch_size_prompts", "context_size")
    of_runner = [settings.runner.get(name) for name in (*names, *sizes)]
    return [settings.seed, settings.heldout_tokens, *of_runner, *model_facts(settings)]


def _check_rows(
    rows: Any, column: str, settings: SAELensSettings, model: Any, vocabulary: int | None
) -> None:
    """Refuse text where the model has no tokenizer, and tokens that it does not have.

    What a stream holds further on shows only when it is read.
    """
    if column not in TOKENS and getattr(model, "tokenizer", None) is None:
        raise PluginError(
            f"--model_name {settings.model_name} has no tokenizer, and --dataset_path "
            f"{settings.runner['dataset_path']} no column {' or '.join(TOKENS)}: save the model's "
            "tokenizer there with its save_pretrained"
        )
    if column in TOKENS:
        _check_tokenized(settings)
        _check_tokenizer(settings, model)
    if column not in TOKENS or vocabulary is None or not isinstance(rows, datasets.Dataset):
        return
    from pyarrow import compute

    found = compute.min_max(compute.list_flatten(rows.data.column(column)))
    if found["min"].is_valid:
        with prefixed(f"--dataset_path {settings.runner['dataset_path']}"):
            lowest, highest = found["min"].as_py(), found["max"].as_py()
            check_range(lowest, highest, vocabulary, settings.model_name)


def _with_plain_lists(rows: Any) -> Any:
    """The rows such that SAELens reads tokens as plain lists.

    It has a `Dataset` with tokens give tensors, which it copies with a warning for each; an
    `IterableDataset` it leaves alone.
    """
    if isinstance(rows, datasets.Dataset) and {*TOKENS} & {*rows.column_names}:
        return rows.to_iterable_dataset()
    return rows


def load_dataset(settings: SAELensSettings) -> Any:
    """The dataset at `dataset_path`, a folder or a name on the Hub; its code is never run."""
    path = os.path.expanduser(str(settings.runner["dataset_path"]))
    try:
        if (Path(path) / "dataset_info.json").is_file():
            return datasets.load_from_disk(path).with_format(None)
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


def _column(rows: Any, settings: SAELensSettings) -> str:
    """The column that SAELens reads."""
    names = rows.column_names or [*next(iter(rows), ())]  # a stream may not know them
    known = (*TOKENS, "text", "problem")
    if settings.runner.get("use_chat_formatting"):
        known = ("conversation", "conversations", "messages", "text")
    for name in known:
        if name in names:
            return name
    raise PluginError(
        f"--dataset_path {settings.runner['dataset_path']} has the columns {', '.join(names)}: "
        f"one must be called {' or '.join(known)}"
    )


def _check_tokenized(settings: SAELensSettings) -> None:
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
    path = os.path.expanduser(str(settings.runner["dataset_path"]))
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return
    try:
        file = Path(path, TOKENIZATION)
        if not Path(path).is_dir():
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


def _first_documents(rows: Any, column: str, settings: SAELensSettings, model: Any) -> list[Any]:
    """As many documents as `heldout_tokens` tokens and one batch of the model need."""
    if not settings.heldout_tokens:
        return []
    prompts = settings.runner.get("store_batch_size_prompts", 32)
    size = settings.runner.get("context_size", 128)
    alone = settings.runner.get("disable_concat_sequences", False)
    wanted = settings.heldout_tokens + prompts * size
    held: list[Any] = []
    for row in rows:
        if wanted <= 0:
            break
        held.append(row[column])
        length = _length(row[column], model)
        wanted -= size * (length >= size) if alone else length  # a document is one prompt, or none
    return held


def _length(document: Any, model: Any) -> int:
    """Tokens of a text, a chat, or a tokenised document."""
    if document and isinstance(document, list) and isinstance(document[0], dict):
        return len(tokenize_with_chat_template(document, model.tokenizer))
    if isinstance(document, str):
        tokens = model.to_tokens(document, truncate=False, move_to_device=False, prepend_bos=False)
        return int(tokens.shape[1])
    return len(document)
