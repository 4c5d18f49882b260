"""The text of a run: what it trains on, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
from sae_lens.tokenization_and_batching import tokenize_with_chat_template

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.base.saelens import trained_positions
from sae_plugins.runs.models import model_facts
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.sources import ROWS
from sae_plugins.runs.texts.columns import TOKENS, Column, choose_column
from sae_plugins.runs.texts.documents import Documents, digest, look_through, numbered
from sae_plugins.runs.texts.loading import load_rows, reason
from sae_plugins.runs.texts.tokenized import check_tokenized

SHUFFLE_BUFFER = 10_000
"""Documents among which a streamed dataset is shuffled."""


@dataclass(frozen=True)
class TextSplits:
    """What the model reads: documents to train on, and disjoint ones to score the SAE on."""

    train: Any
    heldout: Any


def load_text(settings: SAELensSettings, model: Any, vocabulary: int | None = None) -> TextSplits:
    """The training text, in its seed's order, and held-out text, which no seed changes.

    The first documents of a dataset are held out, as many as the held-out tokens need.

    Args:
        settings: the run's.
        model: it reads the text.
        vocabulary: how many tokens it has, if that is known.

    Raises:
        PluginError: the dataset cannot be loaded, is too small, or not for this model.
    """
    if settings.model_name == world.NAME and not settings.runner.get("dataset_path"):
        train = world.load_text("train").shuffle(seed=settings.order)
        heldout = world.load_text("heldout") if settings.heldout_tokens else None
        train = _with_plain_lists(train, settings.data_shards)
        return TextSplits(train, _with_plain_lists(heldout))
    place = f"--dataset_path {settings.runner['dataset_path']}"
    rows = load_rows(settings)
    column = choose_column(rows, settings, place)
    if column.kind == TOKENS:
        check_tokenized(rows, column, settings, model, vocabulary)
    elif getattr(model, "tokenizer", None) is None:
        raise PluginError(
            f"--model_name {settings.model_name} has no tokenizer, and {place} no tokens, but text "
            f"in its column {column.name!r}: save the model's tokenizer there with its "
            "save_pretrained"
        )
    if isinstance(rows, datasets.Dataset):
        look_through(rows, column, place)
    rows = numbered(rows, column)
    first = Documents(rows, column, place)
    held = _first_documents(first, settings, model, column)
    if isinstance(rows, datasets.Dataset):
        taken = first.rows_read if held else 0
        if 2 * taken > len(rows):
            raise PluginError(_too_small(settings, f"takes {taken} of its {len(rows)} documents"))
        rows = rows.select(range(taken, len(rows))).shuffle(seed=settings.order)
    else:
        # no skip(): it would pin the order of the shards, so that all seeds begin with the first
        rows = rows.shuffle(seed=settings.order, buffer_size=SHUFFLE_BUFFER)
    digests = frozenset(map(digest, held))
    train = Documents(rows, column, place, digests)
    return TextSplits(train, [{column.kind: document} for document in held] or None)


def text_facts(settings: SAELensSettings) -> list[Any]:
    """What the text depends on."""
    names = ("dataset_path", "dataset_revision", "streaming", *ROWS)
    sizes = ("store_batch_size_prompts", "context_size")
    how = ("use_chat_formatting", "disable_concat_sequences")
    of_runner = [settings.runner.get(name) for name in (*names, *sizes, *how)]
    held = (settings.heldout_tokens, settings.unseen_tokens)
    return [settings.order, settings.data_shards, *held, *of_runner, *model_facts(settings)]


def _with_plain_lists(rows: Any, shards: int = 1) -> Any:
    """The rows, which can be read in so many shards, such that SAELens reads plain lists.

    It has a `Dataset` with tokens give tensors, which it copies with a warning for each; an
    `IterableDataset` it leaves alone.
    """
    return rows.to_iterable_dataset(shards) if isinstance(rows, datasets.Dataset) else rows


def _first_documents(
    rows: Documents, settings: SAELensSettings, model: Any, column: Column
) -> list[Any]:
    """As many documents as the held-out tokens and one batch of the model need."""
    if not settings.heldout_tokens:
        return []
    prompts = settings.runner.get("store_batch_size_prompts", 32)
    size = settings.runner.get("context_size", 128)
    alone = settings.runner.get("disable_concat_sequences", False)
    kept = trained_positions(size, settings.runner.get("seqpos_slice") or (None,))
    scored = settings.heldout_tokens + settings.unseen_tokens
    wanted = missing = -(-scored * size // kept) + prompts * size
    held: list[Any] = []
    for row in rows:
        document = row[column.kind]
        length = _length(document, model, rows.where)
        held.append(document)
        # tokens are one prompt, however many they are, and so is a document alone, or none
        is_prompt = alone or column.kind == TOKENS
        missing -= size * (length >= size) if is_prompt else length
        if missing <= 0:
            return held
    raise PluginError(
        _too_small(
            settings,
            f"takes {wanted:,} with a batch of prompts, and its {len(held):,} documents have "
            f"{wanted - missing:,}{f' in prompts of {size}' if alone else ''}",
        )
    )


def _too_small(settings: SAELensSettings, why: str) -> str:
    more = settings.unseen_tokens
    calibrating = f" and setting its thresholds on {more}" if more else ""
    return (
        f"--dataset_path {settings.runner['dataset_path']} is too small: scoring the SAE on "
        f"{settings.heldout_tokens} tokens{calibrating} {why}; give more text, or lower "
        f"--heldout_tokens{' and --calibrate_tokens' if more else ''}; 0 scores nothing"
    )


def _length(document: Any, model: Any, where: str) -> int:
    """Tokens of a text, a chat, or a tokenised document."""
    try:
        if isinstance(document, str):
            tokens = model.to_tokens(
                document, truncate=False, move_to_device=False, prepend_bos=False
            )
            return int(tokens.shape[1])
        if isinstance(document[0], dict):
            return len(tokenize_with_chat_template(document, model.tokenizer))
    except Exception as error:  # of tokenizers and of chat templates
        raise PluginError(f"{where}: the tokenizer cannot read it {reason(error)}") from error
    return len(document)
