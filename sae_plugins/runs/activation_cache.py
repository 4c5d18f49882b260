"""A language model's activations, kept on disk for the next run on the same text.

What a language model gives for a prompt may depend, in the last bits, on the prompts beside it.
So what is kept is the answer to a whole batch of prompts, by the batch's tokens, and a run that
reads it trains on the very numbers that it would have computed. They lie together by all else
that they depend on:

    FOLDER/activations-IDENTITY/TOKENS.safetensors

IDENTITY stands for the model's files or commit, how it is loaded and called, the hook, the machine
and the versions that compute, and the text with its order, which no seed shares with another.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.config import LanguageModelSAERunnerConfig

from sae_plugins.base import kept
from sae_plugins.base.errors import PluginError, reason
from sae_plugins.base.files import size, versions
from sae_plugins.base.fingerprints import fingerprint, of_value
from sae_plugins.base.identity import of_code
from sae_plugins.base.kept import Folder
from sae_plugins.base.saelens import ESTIMATED, computing, trained_positions
from sae_plugins.base.secrets import redacted, without_secrets
from sae_plugins.runs.machine import machine
from sae_plugins.runs.models import activation_size, model_facts, model_loader, model_looks
from sae_plugins.runs.setup import SAELensSettings, defaults_of
from sae_plugins.runs.sources import made_from

if TYPE_CHECKING:
    from sae_lens.training.activations_store import ActivationsStore
    from torch import Tensor

logger = logging.getLogger(__name__)

_OF_MODEL = (
    *("model_class_name", "model_from_pretrained_kwargs", "llm_device", "compile_llm"),
    *("llm_compilation_mode", "hook_name", "hook_head_index", "seqpos_slice", "autocast_lm"),
    "model_kwargs",
)
_OF_TEXT = (
    *("context_size", "store_batch_size_prompts", "prepend_bos", "sequence_separator_token"),
    *("disable_concat_sequences", "use_chat_formatting", "streaming"),
    *("dataset_config", "dataset_split", "text_column"),
)
_VERSIONS = ("sae-lens", "torch", "transformer-lens", "transformers")
_CODE = ("runs/language_models/*.py",)
_FLOAT32_BYTES = 4
_HEADER = 1000
"""Bytes of an entry besides its numbers, at most."""
_ACTS, _COUNT = "acts", "count"
_WHOLE = f"{of_value('the whole text')}{kept.SUFFIX}"
"""Name of the entry that says of how many batches a text consists, before it begins again."""

Compute = Callable[["Tensor"], "Tensor"]
"""Activations [prompts, positions, d_in] of tokens [prompts, context]."""


@dataclass(frozen=True)
class Harvest:
    """The activations of the text of a run, to train on or held out.

    Attributes:
        identity: a hash of what they depend on, besides the tokens.
        about: the same in words.
        entries: batches of the language model, at most, where no token is excluded.
        entry_bytes: what each takes.
    """

    identity: str
    about: str
    entries: int
    entry_bytes: int

    def place(self, folder: Path) -> Path:
        """Where its entries lie."""
        return folder / f"activations-{self.identity}"

    def missing(self, folder: Path) -> int:
        """Bytes that are not there yet, at most."""
        names = {file.name for file in self.place(folder).glob(f"*{kept.SUFFIX}")}
        wanted = self.entries
        if _WHOLE in names:
            with suppress(kept.Damaged):
                _, texts = kept.read(self.place(folder) / _WHOLE, is_use=False) or ({}, {})
                wanted = min(wanted, int(texts.get(_COUNT, wanted)))
        return max(0, wanted - len(names - {_WHOLE})) * self.entry_bytes


def harvests(settings: SAELensSettings, d_in: int, threads: int | None = None) -> list[Harvest]:
    """What a run reads: the text that it trains on, and what is held out.

    Args:
        settings: the run's, with the commits of what is read from the Hub.
        d_in: the size of an activation.
        threads: of torch, where another process computes; its sums round by their number.

    Raises:
        PluginError: nobody knows which model it is.
    """
    values = {**defaults_of(LanguageModelSAERunnerConfig), **settings.runner}
    text = values.get("dataset_path") or "its own text"
    held = settings.heldout_tokens
    if values.get("dataset_path"):  # of which so much is not trained on
        held += settings.unseen_tokens
    facts = _facts(settings, values, threads) | {"heldout": held}
    shards = settings.data_shards
    cut = f", cut into {shards}" if shards > 1 else ""
    parts: list[tuple[str, Any]] = [
        (
            f"{text} in the order of seed {settings.order}{cut}",
            [settings.order, shards] if cut else settings.order,
        )
    ]
    parts += [(f"held out of {text}", None)] if settings.heldout_tokens else []
    batch, to_train = _batches_to_train(settings, values)
    held_out = (settings.heldout_tokens, settings.unseen_tokens)
    counts = (to_train, sum(-(-tokens // batch) for tokens in held_out))
    return [
        Harvest(
            of_value({**facts, "order": order}),
            without_secrets(f"{settings.model_name}, {values['hook_name']}, {what}"),
            count,
            batch * d_in * _FLOAT32_BYTES + _HEADER,
        )
        for (what, order), count in zip(parts, counts, strict=False)
    ]


def _batches_to_train(settings: SAELensSettings, values: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of a batch of the language model, and how many such batches SAELens' buffer takes."""
    positions = trained_positions(values["context_size"], values["seqpos_slice"])
    batch = values["store_batch_size_prompts"] * positions
    shards = settings.data_shards  # each with its share of a batch and of the buffer
    size = values["train_batch_size_tokens"] // shards
    buffer = values["n_batches_in_buffer"] * positions // shards
    wanted = -(-values["training_tokens"] // (size * shards))
    if settings.sae.get("normalize_activations") in ESTIMATED:
        wanted += values["n_batches_for_norm_estimate"]
    wanted += -(-(settings.following_tokens - settings.unseen_tokens) // (size * shards))
    mixed = int(buffer * values["activations_mixing_fraction"])
    read = waiting = 0
    while wanted > 0:
        read += 1
        waiting += batch
        if waiting >= buffer:
            served = max(1, (waiting - mixed) // size)
            wanted -= served
            waiting -= served * size
    return batch, shards * read


def _facts(
    settings: SAELensSettings, values: Mapping[str, Any], threads: int | None
) -> dict[str, Any]:
    sources = made_from(settings.model_name, settings.runner)
    fact = sources.get("model", {})
    if fact is None or None in fact.get("files", {}).values():  # which cannot be read
        raise PluginError(
            f"--activation_cache: nobody knows which files {settings.model_name} consists of, or "
            "at which commit it is on the Hub, so that its activations could be another's: give "
            "--model_revision a commit, or leave --activation_cache out"
        )
    made: dict[str, Any] = {}
    for name in ("model", "world", "dataset"):
        made[name] = dict(sources.get(name) or {})
        if "files" in made[name]:
            made[name].pop("at", None)  # where a folder lies does not matter
    return {
        "made_from": made,
        "settings": redacted({name: values.get(name) for name in (*_OF_MODEL, *_OF_TEXT)}),
        "versions": versions(_VERSIONS),
        "code": of_code(_CODE),
        "machine": machine(settings, threads),
    }


# -- before a run ----------------------------------------------------------------------------------


def expected(
    runs: Iterable[SAELensSettings], threads: int | None = None
) -> Iterator[list[Harvest]]:
    """The `harvests` of runs whose models are not loaded; synthetic models have none."""
    sizes: dict[str, int] = {}
    for settings in runs:
        if settings.is_synthetic or settings.runner.get("use_cached_activations"):
            continue
        model = of_value([model_facts(settings), settings.runner.get("hook_head_index")])
        if model not in sizes:
            sizes[model] = activation_size(model_looks(model_loader(settings)), settings)
        yield harvests(settings, sizes[model], threads)


def plan(found: Iterable[Harvest], where: Folder) -> str:
    """What is about to be written, in a sentence.

    Raises:
        PluginError: the budget or the disk has no room for it, or there can be no such folder.
    """
    folder, flag = where.path, f"--activation_cache {where.path}"
    if is_read_only(folder):
        return f"{folder} is read-only: what it holds is used, and nothing is added"
    largest = {one.identity: one for one in sorted(found, key=lambda one: one.entries)}
    missing = sum(one.missing(folder) for one in largest.values())
    if not missing:
        return f"all of them are in {folder}"
    there, free = kept.total(folder), _free(folder)
    takes = f"{flag}: the activations that this run lacks take up to {size(missing)}"
    if there + missing > where.budget:
        raise PluginError(
            f"{takes}, the folder holds {size(there)}, and --cache_budget is {size(where.budget)}: "
            f"raise it, make room (sae-plugins cache prune {folder}), or leave --activation_cache "
            "out"
        )
    if missing > free:
        raise PluginError(
            f"{takes}, and the disk has {size(free)} to spare: make room, name a folder on another "
            "disk, or leave --activation_cache out"
        )
    try:
        _check_place(folder)
        if where.takes:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PluginError(f"{flag} cannot be made: {reason(error)}; name another folder") from error
    return f"up to {size(missing)} more in {folder}, which holds {size(there)}"


def is_read_only(folder: Path) -> bool:
    """Whether a folder is there that takes nothing."""
    return folder.is_dir() and not os.access(folder, os.W_OK)


def _check_place(folder: Path) -> None:
    """A folder is there, or can be made.

    Raises:
        OSError: neither.
    """
    there = _nearest(folder)
    number = errno.EACCES if there.is_dir() else errno.ENOTDIR
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OSError(number, os.strerror(number), str(there))


def _nearest(folder: Path) -> Path:
    """A folder, or what is there of the path to it."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _free(folder: Path) -> int:
    """Bytes of the disk that may be used where a folder is, or will be."""
    return max(0, shutil.disk_usage(_nearest(folder)).free - kept.SPARE)


# -- in a run --------------------------------------------------------------------------------------


class ActivationCache:
    """Gives the stores of a run the activations that are there, and keeps those that are not."""

    def __init__(self, found: Iterable[Harvest], folder: Folder) -> None:
        """Name what is to be had; nothing happens yet.

        Args:
            found: the `harvests` of the run.
            folder: where they are kept.
        """
        self.folder = folder
        self._harvests = list(found)
        self._in_use = kept.InUse(folder.path)
        self._room = 0  # bytes that fit, as far as it has looked
        self._is_closed = not folder.takes or is_read_only(folder.path)  # which `plan` says

    def plan(self) -> str:
        """What is about to be written, in a sentence.

        Raises:
            PluginError: there is no room for it.
        """
        return plan(self._harvests, self.folder)

    def serve(self, store: ActivationsStore, heldout: bool, shards: int = 1) -> None:
        """Have a store over one part of the text, or a shard of it, get its activations here."""
        harvest = self._harvests[heldout]
        seen: set[str] = set() if shards == 1 else {_WHOLE}  # of which one shard tells nothing

        def activations(compute: Compute, tokens: Tensor) -> Tensor:
            path = harvest.place(self.folder.path) / f"{fingerprint(tokens)}{kept.SUFFIX}"
            if path.name in seen and _WHOLE not in seen:  # the text begins again
                self._note_the_end(harvest, len(seen))
                seen.add(_WHOLE)
            seen.add(path.name)
            return self._get(harvest, path, compute, tokens).to(store.device)

        computing(store, activations)

    def _get(self, harvest: Harvest, path: Path, compute: Compute, tokens: Tensor) -> Tensor:
        if self.folder.takes:
            self._in_use.add(path.parent.name)
        try:
            found = kept.read(path, is_use=self.folder.takes)
            if found is not None:
                # a copy, which lies in memory as computed ones do: products depend on it
                return found[0][_ACTS].clone()
        except kept.Damaged as error:
            logger.warning("%s is damaged and is computed again: %s", path, error)
        acts = compute(tokens)
        self._write(path, ({_ACTS: acts}, {}), harvest)
        return acts

    def _note_the_end(self, harvest: Harvest, count: int) -> None:
        """The text has no more than so many batches."""
        path = harvest.place(self.folder.path) / _WHOLE
        if not path.exists():
            self._write(path, ({}, {_COUNT: str(count)}), harvest)

    def _write(self, path: Path, entry: kept.Cached, harvest: Harvest) -> None:
        if self._is_closed:
            return
        try:
            kept.write(path, entry, harvest.about, self._check)
        except OSError as error:
            self._is_closed = True
            logger.warning(
                "%s takes no more activations, so the rest is computed and not kept: %s",
                self.folder.path,
                reason(error),
            )

    def _check(self, count: int) -> None:
        """Refuse an entry for which the budget has no room; another process may have used it."""
        if count > self._room:
            budget = self.folder.budget
            free = budget - kept.total(self.folder.path)
            if count > free:
                raise OSError(f"--cache_budget {size(budget)} is used up")
            # to look takes time, so that two processes may go over it by a hundredth
            self._room = max(count, min(free, budget // 100))
        self._room -= count
