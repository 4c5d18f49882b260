"""SAELens' training batches with a state: a run that is resumed sees those of one never stopped.

::

    text --sequences--> language model --activations--> mixing buffer --batches--> training
    `_Place`                                             `MixingBuffer`
    which sequence                                      which rows are not served yet: undelivered
                                                        which rows stay to be mixed:   kept

SAELens keeps all of this in generators. Our own mixing buffer serves the same batches, and has a
state.

With prefetching, a thread pulls batches ahead of training. Those that were delivered to the
thread, but not yet taken by training, are in flight and belong to the state too.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef
from tqdm.auto import tqdm

from sae_plugins.base import saelens
from sae_plugins.base.errors import PluginError, StateError
from sae_plugins.base.identity import Fact, of_rows, of_tensors, of_tokenizer
from sae_plugins.base.torchvision import without_videos
from sae_plugins.resume.mixing import MixingBuffer

if TYPE_CHECKING:
    from sae_lens.training.activations_store import ActivationsStore


BROKEN_OFF = (
    "no exact checkpoint can be made here: the run was interrupted while SAELens was preparing a "
    "batch; resume from the checkpoint before"
)


class Stream(Iterator["Tensor | dict[str, Tensor]"]):
    """The training batches of a SAELens `ActivationsStore`, bitwise those of its own loader.

    Tensors [train_batch_size_tokens, d_in], or in multi-hook mode one of them per hook, by name.

    Attributes:
        store: whose batches they are.
        lock: held during each pull: whoever holds it sees a stream at rest, whichever thread pulls.
    """

    def __init__(
        self,
        store: ActivationsStore,
        *,
        multi_hook: bool = False,
        accept_changes: bool = False,
        share: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take over the reading of a store whose text has not been read yet.

        Args:
            store: whose batches they are.
            multi_hook: a batch has activations by hook.
            accept_changes: go on, by number, in text that is not the one of the state.
            share: how many such streams share a batch and the buffer, each with as much of them.
            generator: what shuffles; None for the global random state.

        Raises:
            PluginError: it has been.
        """
        without_videos()
        self.store = store
        self.lock = threading.RLock()
        self.widths = saelens.hook_widths(store) if multi_hook else None  # d_in by hook
        self._text = _Place(store, accept_changes)
        self._mixer = _mixer(store, self.widths, share, generator)
        self._at_rest, self._pulled = True, False
        self._in_flight = InFlight()

    # -- the batches ---------------------------------------------------------------------------

    def __next__(self) -> Tensor | dict[str, Tensor]:
        with self.lock:
            rows = self.pull()
            batch = by_hook(rows, self.widths)
            self._in_flight.add(batch)
            return batch

    def pull(self) -> Tensor:
        """The next rows, those of several hooks side by side; the caller keeps them in mind."""
        with self.lock:
            self._at_rest, self._pulled = False, True
            rows = next(self._mixer)
            self._at_rest = True
            return rows

    def taken(self, batch: Tensor | dict[str, Tensor]) -> None:
        """This batch, or the one that this tensor is part of, has left SAELens' queue."""
        self._in_flight.taken(batch)

    def whole(self, batch: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The batch that training gets of what has left SAELens' queue: this one."""
        self.taken(batch)
        return batch

    # -- the state -----------------------------------------------------------------------------

    def state_dict(self, *, rows: bool = True) -> dict[str, Any]:
        """Where the stream is, as plain values and tensors; the caller holds `lock`.

        The rows are views of the buffer, which stays as it is until the lock is released. The
        global random state, from which SAELens shuffles, is the caller's to save.

        Args:
            rows: also the activations; without them, a resumed stream fills its buffer with new
                text from the same place on, which is cheaper to save and not exact.

        Raises:
            PluginError: a pull was broken off, by an error or a signal, and took its rows with it.
        """
        state = self._text.state_dict()
        if not rows:
            return state
        if not self._at_rest:
            raise PluginError(BROKEN_OFF)
        undelivered, kept = self._mixer.state()
        return {**state, "undelivered": [*self._in_flight.rows(), *undelivered], "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another stream was; text is only read when new activations are needed.

        Raises:
            StateError: the cached activations are not those the state was made with. Other text
                is an error too, where it is found out: at the first new activations.
            RuntimeError: a batch was already pulled.
        """
        if self._pulled:
            raise RuntimeError("a state must be loaded before the first batch is pulled")
        self._text.load_state_dict(state)
        self._mixer.load(state.get("undelivered", []), state.get("kept"), self.store.device)

    def facts(self) -> dict[str, Any]:
        """Plain JSON values that must be equal for a resumed run to be exact."""
        store = self.store
        if self.widths is None:
            heads, widths = {store.hook_name: store.hook_head_index}, {store.hook_name: store.d_in}
        else:
            heads, widths = saelens.hook_heads(store), self.widths
        excluded = store.exclude_special_tokens
        return {
            "hooks": [[hook, heads.get(hook), d_in] for hook, d_in in widths.items()],
            "context_size": store.context_size,
            "seqpos_slice": list(store.seqpos_slice),
            "store_batch_size_prompts": store.store_batch_size_prompts,
            "train_batch_size_tokens": store.train_batch_size_tokens,
            "n_batches_in_buffer": store.n_batches_in_buffer,
            "activations_mixing_fraction": store.activations_mixing_fraction,
            "prepend_bos": store.prepend_bos,
            "sequence_separator_token": store.sequence_separator_token,
            "disable_concat_sequences": store.disable_concat_sequences,
            "exclude_special_tokens": None if excluded is None else sorted(excluded.tolist()),
            "use_chat_formatting": store.use_chat_formatting,
            "dtype": str(store.dtype),
            "autocast_lm": store.autocast_lm,
            "use_cached_activations": store.cached_activation_dataset is not None,
            "model_kwargs": {
                name: value
                for name, value in store.model_kwargs.items()
                if isinstance(value, (bool, int, float, str))
            },
        }

    def made_from(self) -> dict[str, Fact | None]:
        """What is known of the language model, its tokenizer and the text, by what is in memory."""
        return made_from(self.store)


class InFlight:
    """The batches that a thread has pulled ahead, and that training has not taken yet."""

    def __init__(self) -> None:
        """Nothing is in flight."""
        # Weakly: without a queue nobody tells when norm estimation is done with a batch, and a
        # thousand of them would fill the memory. SAELens' queue keeps alive what waits in it.
        self._delivered: deque[tuple[int, tuple[TensorWeakRef, ...]]] = deque()
        self._lock = threading.Lock()  # not the stream's: training must not wait for a pull

    def add(self, batch: Tensor | dict[str, Tensor]) -> None:
        """This thread has pulled a batch."""
        with self._lock:
            while self._delivered and not _all_alive(self._delivered[0][1]):
                self._delivered.popleft()
            tensors = tuple(map(TensorWeakRef, _tensors(batch)))
            self._delivered.append((threading.get_ident(), tensors))

    def taken(self, batch: Tensor | dict[str, Tensor]) -> None:
        """A batch is no longer in flight, and so are all before it: they come in order."""
        tensor, *_ = _tensors(batch)
        with self._lock:
            for before, (_, tensors) in enumerate(self._delivered):
                if any(one() is tensor for one in tensors):
                    for _ in range(before + 1):
                        self._delivered.popleft()
                    return

    def rows(self) -> list[Tensor]:
        """The rows of every batch that a thread pulled ahead, and that is alive as a whole.

        What the training's own thread pulled is taken, also where somebody still holds it.
        """
        here = threading.get_ident()
        with self._lock:
            delivered = [
                [tensor() for tensor in tensors]
                for thread, tensors in self._delivered
                if thread != here
            ]
        whole = [
            [tensor for tensor in tensors if tensor is not None]
            for tensors in delivered
            if all(tensor is not None for tensor in tensors)
        ]
        return [rows[0] if len(rows) == 1 else torch.cat(rows, dim=1) for rows in whole]


class _Place:
    """How much a store has read: text in this epoch, whoever read it, and cached activations."""

    def __init__(self, store: ActivationsStore, accept_changes: bool) -> None:
        self.store = store
        self._accepts_changes = accept_changes
        self._sequences = 0
        self._last: Tensor | None = None
        sequences = getattr(store, "iterable_sequences", None)
        if sequences is None:  # cached activations alone
            return
        if inspect.getgeneratorstate(sequences) != inspect.GEN_CREATED:
            raise PluginError(
                "training on text that was already being read cannot be resumed exactly: build "
                "the runner (or the ActivationsStore) inside the `sae_plugins.plugins` context, "
                "and read nothing from its store before it trains"
            )
        self._read = saelens.replace_text(store, self._epoch)
        store.iterable_sequences = self._epoch()

    def _epoch(self) -> Generator[Tensor, None, None]:
        self._sequences, self._last = 0, None
        return self._counted(self._read())

    def _counted(self, sequences: Iterator[Tensor]) -> Generator[Tensor, None, None]:
        for sequence in sequences:
            self._sequences += 1
            self._last = sequence
            yield sequence

    def _resumed(self, n_dataset_processed: int) -> Generator[Tensor, None, None]:
        """The rest of the epoch; the first sequence that anybody wants finds the place."""
        assert self._last is not None
        sequences, wanted = self._read(), self._sequences
        found, last = 0, None
        passed = tqdm(
            islice(sequences, wanted),
            total=wanted,
            desc="Finding the place in the text",
            unit="sequence",
            leave=False,
        )
        for found, last in enumerate(passed, start=1):  # noqa: B007
            pass
        if found < wanted or last is None or not self._is(last, self._last):
            what = "ends" if found < wanted else "differs"
            raise StateError(
                f"the text is not the one that the checkpoint was made with: it {what} before "
                f"{wanted} sequences of {self.store.context_size} tokens; resume with the same "
                "dataset, in the same order, and the same tokenizer"
            )
        self.store.n_dataset_processed = n_dataset_processed
        yield from self._counted(sequences)

    def state_dict(self) -> dict[str, Any]:
        """The place, and what was last read there."""
        state: dict[str, Any] = {
            "sequences": self._sequences,
            "n_dataset_processed": self.store.n_dataset_processed,
        }
        if self._last is not None:
            state["last_sequence"] = self._last.cpu()
        if self.store.cached_activation_dataset is not None:
            state["cached_row"] = self.store.current_row_idx
            if self.store.current_row_idx:
                state["last_cached"] = self._cached_before(self.store.current_row_idx).cpu()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place: at once in cached activations, in text when it is next read."""
        store = self.store
        store.n_dataset_processed = state["n_dataset_processed"]
        if state["sequences"]:
            self._sequences, self._last = state["sequences"], state["last_sequence"]
            store.iterable_sequences = self._resumed(state["n_dataset_processed"])
        if "cached_row" in state:
            cached, row = store.cached_activation_dataset, state["cached_row"]
            if row and (
                cached is None
                or row > len(cached)
                or not self._is(self._cached_before(row), state["last_cached"])
            ):
                raise StateError(
                    "the cached activations are not those that the checkpoint was made with; "
                    "resume with the same"
                )
            store.current_row_idx = row

    def _is(self, found: Tensor, expected: Tensor) -> bool:
        return self._accepts_changes or torch.equal(found.cpu(), expected.cpu())

    def _cached_before(self, row: int) -> Tensor:
        """The last position of the row before; the first is the same in all, where it is BOS."""
        assert self.store.cached_activation_dataset is not None
        rows: Tensor = self.store.cached_activation_dataset[row - 1 : row][self.store.hook_name]
        return rows[0, -1]


def made_from(store: ActivationsStore) -> dict[str, Fact | None]:
    """What is known of a store's language model, its tokenizer and the text, by what is there."""
    model, text = store.model, getattr(store, "dataset", None)
    cached = store.cached_activation_dataset
    found: dict[str, Fact | None] = {"model": of_tensors(model.state_dict())}
    if (tokenizer := getattr(model, "tokenizer", None)) is not None:
        found["tokenizer"] = of_tokenizer(tokenizer)
    if text is not None:
        found["dataset"] = of_rows(text)
    if cached is not None:
        found["cached_activations_path"] = of_rows(cached)
    return found


def batches(store: ActivationsStore, multi_hook: bool) -> Iterator[Any]:
    """The batches of a `Stream`, without a state; the store's text may have been read before."""
    widths = saelens.hook_widths(store) if multi_hook else None
    mixer = _mixer(store, widths)
    return mixer if widths is None else (by_hook(rows, widths) for rows in mixer)


def _mixer(
    store: ActivationsStore,
    widths: Mapping[str, int] | None,
    share: int = 1,
    generator: torch.Generator | None = None,
) -> MixingBuffer:
    """What SAELens' loaders mix; in multi-hook mode a row per token, so that hooks move alike."""
    activations = (
        saelens.activations(store)
        if widths is None
        else (
            torch.cat([acts[hook] for hook in widths], dim=1)
            for acts in saelens.activations_by_hook(store)
        )
    )
    sliced = store.cached_activation_dataset is None
    positions = store.training_context_size if sliced else store.context_size
    return MixingBuffer(
        store.n_batches_in_buffer * store.training_context_size // share,
        store.train_batch_size_tokens // share,
        activations,
        store.activations_mixing_fraction,
        largest=store.store_batch_size_prompts * positions,
        generator=generator,
    )


def by_hook(rows: Tensor, widths: Mapping[str, int] | None) -> Tensor | dict[str, Tensor]:
    """Rows [n, sum of d_in] as activations [n, d_in] by hook; as they are without such widths."""
    if widths is None:
        return rows
    batch, start = {}, 0
    for hook, width in widths.items():
        batch[hook], start = rows[:, start : start + width], start + width
    return batch


def _tensors(batch: Tensor | dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(batch.values()) if isinstance(batch, dict) else (batch,)


def _all_alive(tensors: tuple[TensorWeakRef, ...]) -> bool:
    return all(tensor() is not None for tensor in tensors)
