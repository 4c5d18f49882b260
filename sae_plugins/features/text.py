"""The text that features are looked at on: prompts as those that the SAE was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import ActivationsStore
from sae_lens.util import get_special_token_ids
from torch import Tensor

from sae_plugins import world
from sae_plugins.base.errors import PluginError, SuiteError
from sae_plugins.base.secrets import without_secrets
from sae_plugins.base.shown_paths import without_places
from sae_plugins.eval_suites.inputs.data import OPEN_TEXT
from sae_plugins.eval_suites.inputs.models import LanguageModel
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.inputs.world_data import WorldData
from sae_plugins.runs.setup import SAELensSettings, quiet
from sae_plugins.runs.sources import ROWS
from sae_plugins.runs.texts.columns import TOKENS, choose_column
from sae_plugins.runs.texts.documents import Documents, numbered
from sae_plugins.runs.texts.found import how_to_load
from sae_plugins.runs.texts.loading import load_rows
from sae_plugins.runs.texts.tokenized import check_tokenized

CONTEXT = 128
"""Tokens of a prompt where an SAE's config does not say it."""
FLAGS = ("dataset_path", "dataset_revision", *ROWS)
"""The flags that name a text."""
_SEED = 0
"""Of the embedded world's text."""


def where_of(subject: Subject) -> Any:
    """What an SAE's config says of its model, its hook and its text, as attributes."""
    cfg = subject.sae.cfg
    return getattr(cfg, "metadata", cfg)


@dataclass(frozen=True)
class Prompts:
    """Prompts of a text, and the language model's activations on them.

    Attributes:
        store: SAELens' store, which reads and tokenizes.
        name: the text, in words.
        left_out: tokens [n] that do not count.
        positions: which of a prompt's tokens count.
    """

    store: ActivationsStore
    name: str
    left_out: Tensor
    positions: slice

    @property
    def context_size(self) -> int:
        """Tokens of a prompt."""
        return int(self.store.context_size)

    def batches(self, prompts: int, at_once: int) -> Iterator[Tensor]:
        """So many prompts [n, context_size]; fewer if the text ends before."""
        batch: list[Tensor] = []
        with quiet():
            for number in range(1, prompts + 1):
                try:
                    batch.append(self.store.get_batch_tokens(1, raise_at_epoch_end=True))
                except StopIteration:
                    break
                if len(batch) == at_once or number == prompts:
                    yield torch.cat(batch)
                    batch = []
        if batch:
            yield torch.cat(batch)

    def activations(self, tokens: Tensor) -> Tensor:
        """The activations [n, context_size, d_in] of prompts."""
        acts: Tensor = self.store.get_activations(tokens)
        return acts

    def counting(self, tokens: Tensor) -> Tensor:
        """Where tokens [n, context_size] count: at no special ones, and where the SAE was trained.

        An activation there is hundreds of times as large as elsewhere in many language models.
        """
        counts = ~torch.isin(tokens, self.left_out.to(tokens.device))
        trained = torch.zeros_like(counts)
        trained[:, self.positions] = True
        return counts & trained


def prompts_of(subject: Subject, model: LanguageModel, flags: Mapping[str, Any]) -> Prompts:
    """The prompts for an SAE.

    Args:
        subject: its config says how long prompts are, how they begin, and what text it was
            trained on.
        model: the language model.
        flags: `FLAGS` that name another text.

    Raises:
        SuiteError: nobody says which text, or the model has no tokenizer.
        PluginError: the dataset cannot be loaded.
    """
    where, hooked = where_of(subject), model.hooked
    tokenizer = hooked.tokenizer
    if tokenizer is None:
        raise SuiteError(
            f"{model.name} has no tokenizer, without which no feature can be shown: save it there "
            "with its save_pretrained"
        )
    longest = getattr(hooked.cfg, "n_ctx", None) or CONTEXT
    size = getattr(where, "context_size", None) or min(CONTEXT, longest)
    rows, name = _rows(subject, model, size, flags)
    store = _store(subject, model, rows, size)
    positions = slice(*(getattr(where, "seqpos_slice", None) or (None,)))
    return Prompts(store, name, _left_out(where, tokenizer), positions)


def _store(subject: Subject, model: LanguageModel, rows: Any, size: int) -> ActivationsStore:
    """SAELens' store over the rows of a text."""
    where, tokenizer = where_of(subject), model.hooked.tokenizer
    has_bos = tokenizer.bos_token_id is not None
    with quiet():
        return ActivationsStore(
            model=model.hooked,
            dataset=rows,
            streaming=True,
            hook_name=subject.hook_name,
            hook_head_index=subject.hook_head_index,
            context_size=size,
            d_in=subject.d_in,
            n_batches_in_buffer=1,
            total_training_tokens=1,
            store_batch_size_prompts=1,
            train_batch_size_tokens=1,
            prepend_bos=has_bos and getattr(where, "prepend_bos", None) is not False,
            normalize_activations="none",  # what an SAE scales, it scales itself
            device=torch.device(model.device),
            dtype="float32",
            sequence_separator_token=_separator(where, tokenizer),
            disable_concat_sequences=bool(getattr(where, "disable_concat_sequences", False)),
        )


def _left_out(where: Any, tokenizer: Any) -> Tensor:
    """Special tokens, and what else was left out in training."""
    more = getattr(where, "exclude_special_tokens", None)
    found = {*get_special_token_ids(tokenizer), *(more if isinstance(more, list) else [])}
    return torch.tensor(sorted(found), dtype=torch.long)


def _separator(where: Any, tokenizer: Any) -> Any:
    """What stands between documents; None where nothing does, or the tokenizer has no such token.

    Metadata of SAELens answer None for whatever is not in them, which means its default.
    """
    named = vars(where).get("sequence_separator_token", "bos")
    is_lacking = isinstance(named, str) and getattr(tokenizer, f"{named}_token_id", None) is None
    return None if is_lacking else named


def check_text(subject: Subject, flags: Mapping[str, Any]) -> None:
    """Refuse a text of which its name alone tells that it cannot be read.

    Args:
        subject: as `prompts_of` takes it.
        flags: as `prompts_of` takes them.

    Raises:
        SuiteError: nobody says which text, or the SAE's own is not there.
        PluginError: the one that flags name is not there.
    """
    if named := _named(subject, flags):
        with _blaming(subject, flags):
            how_to_load(named)


def _named(subject: Subject, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that say which text is read; none for the embedded world's own."""
    where = where_of(subject)
    given = {name: flags[name] for name in FLAGS if flags.get(name) is not None}
    if "dataset_path" in given:
        return given
    if subject.dataset is not None:  # what belongs to the SAE's own text goes with it
        own = {name: getattr(where, name, None) for name in FLAGS}
        own = {name: value for name, value in own.items() if value}
        return {**own, **given, "dataset_path": str(subject.dataset)}
    if subject.model_name == world.NAME:
        return {}
    raise SuiteError(
        f"{subject.source}: its config does not say which text it was trained on; name one with "
        "--dataset_path"
    )


@contextmanager
def _blaming(subject: Subject, flags: Mapping[str, Any]) -> Iterator[None]:
    """What is wrong with the text of an SAE is no fault of a flag."""
    try:
        yield
    except PluginError as error:
        if flags.get("dataset_path") is not None:
            raise
        raise SuiteError(
            f"{subject.source} was trained on {without_secrets(str(subject.dataset))}, which "
            f"cannot be read ({error}); name another text with --dataset_path"
        ) from error


def _rows(
    subject: Subject, model: LanguageModel, size: int, flags: Mapping[str, Any]
) -> tuple[Any, str]:
    """The rows of a text, and the text in words."""
    named = _named(subject, flags)
    if not named:
        text = WorldData().text(OPEN_TEXT, 0, _SEED)
        return text, "held-out text of the embedded world"
    path = named["dataset_path"]
    settings = SAELensSettings(model.name, runner={**named, "context_size": size})
    place = f"--dataset_path {path}"
    with _blaming(subject, flags):
        rows = load_rows(settings)
    column = choose_column(rows, settings, place)
    if column.kind == TOKENS:
        check_tokenized(rows, column, settings, model.hooked, model.hooked.cfg.d_vocab)
    told = without_secrets(without_places(str(path)))
    return Documents(numbered(rows, column), column, place), told
