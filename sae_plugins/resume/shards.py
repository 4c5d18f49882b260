"""One text in V data shards, and every batch whole: the same run on any number of ranks.

    shard 0 .. V-1   text that no other has, a buffer of 1/V of the size, and a random state
    rank r of W      reads the shards r V/W to (r+1) V/W - 1: its share of the language model's work
    one all-gather   gives every rank the batch [B, d_in], so that all of them take the same step

V belongs to the run and W to the machine: any W that divides V gives the same numbers. Plugins need
not know, since nothing of a step is divided.
"""

from __future__ import annotations

import copy
import logging
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_plugins.base import saelens
from sae_plugins.base.errors import PluginError
from sae_plugins.base.identity import Fact
from sae_plugins.base.ranks import Ranks, ranks
from sae_plugins.base.seeds import generator
from sae_plugins.resume.division import check_buffer, check_rows, check_shards, own_shards
from sae_plugins.resume.stream import BROKEN_OFF, InFlight, Stream, batches, by_hook, made_from

if TYPE_CHECKING:
    from sae_lens.training.activations_store import ActivationsStore

logger = logging.getLogger(__name__)


class Shards(Iterator["Tensor | dict[str, Tensor]"]):
    """The training batches of a store's text in shards; stands where a `Stream` does.

    A thread that reads ahead gets the rows of this rank, which `whole` completes on the training's
    own thread, so that the ranks exchange their rows in one order.

    Attributes:
        store: whose batches they are.
        count: how many shards there are.
        own: the numbers of those that this rank reads.
        lock: held during each pull.
    """

    def __init__(
        self,
        store: ActivationsStore,
        count: int,
        seed: int,
        ranks: Ranks,
        *,
        multi_hook: bool = False,
        accept_changes: bool = False,
        home: int | None = None,
    ) -> None:
        """Divide the text of a store that has not been read yet.

        Args:
            store: whose batches they are.
            count: how many shards there are; what `check_shards` lets pass.
            seed: of the run.
            ranks: who reads them.
            multi_hook: a batch has activations by hook.
            accept_changes: go on, by number, in text that is not the one of the state.
            home: the thread that trains; None for this one.
        """
        self.store, self.count, self.ranks = store, count, ranks
        self.own = own_shards(count, ranks)
        self.lock = threading.RLock()
        self._home = threading.get_ident() if home is None else home
        self._in_flight, self._at_rest = InFlight(), True
        self._random = {k: generator(seed, f"shard {k} of {count}") for k in self.own}
        self._streams = {
            k: Stream(
                part_of(store, k, count),
                multi_hook=multi_hook,
                accept_changes=accept_changes,
                share=count,
                generator=random,
            )
            for k, random in self._random.items()
        }

    def __next__(self) -> Tensor | dict[str, Tensor]:
        with self.lock:
            self._at_rest = False
            parts = [stream.pull() for stream in self._streams.values()]
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            self._in_flight.add(rows)
            self._at_rest = True
        return self.whole(rows) if threading.get_ident() == self._home else rows

    def whole(self, rows: Any) -> Tensor | dict[str, Tensor]:
        """The batch [B, d_in], by hook if there are several, of which these are this rank's rows.

        Args:
            rows: what a thread that reads ahead was given.
        """
        self.taken(rows)
        return by_hook(self.ranks.whole(rows), next(iter(self._streams.values())).widths)

    def taken(self, batch: Tensor | dict[str, Tensor]) -> None:
        """These rows are no longer in flight."""
        self._in_flight.taken(batch)

    def state_dict(self, *, rows: bool = True) -> dict[str, Any]:
        """Where this rank's shards are, by number; the caller holds `lock`.

        Args:
            rows: also the activations, as in a `Stream`.

        Raises:
            PluginError: a pull was broken off.
        """
        if rows and not self._at_rest:
            raise PluginError(BROKEN_OFF)
        ahead = [batch.chunk(len(self.own)) for batch in self._in_flight.rows()]
        states = {}
        for place, (k, stream) in enumerate(self._streams.items()):
            state = stream.state_dict(rows=rows)
            if rows:
                state["undelivered"] = [*(parts[place] for parts in ahead), *state["undelivered"]]
            states[str(k)] = {"stream": state, "random": self._random[k]}
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where the same shards were, whoever read them.

        Raises:
            PluginError: the activations or the text are not those that the state was made with.
        """
        for k, stream in self._streams.items():
            stream.load_state_dict(state[str(k)]["stream"])
            self._random[k].set_state(state[str(k)]["random"].get_state())

    def facts(self) -> dict[str, Any]:
        """Plain JSON values that must be equal for a resumed run to be exact."""
        first = next(iter(self._streams.values()))
        whole = {
            name: getattr(self.store, name)
            for name in ("train_batch_size_tokens", "n_batches_in_buffer")
        }
        return {**first.facts(), **whole, "data_shards": self.count}

    def made_from(self) -> dict[str, Fact | None]:
        """What is known of the language model, its tokenizer and the text."""
        return made_from(self.store)


def stream_of(
    store: ActivationsStore,
    shards: int,
    seed: int,
    home: int | None = None,
    multi_hook: bool = False,
    accept_changes: bool = False,
) -> Stream | Shards:
    """The batches of a store's text, in so many shards if there are several."""
    if shards == 1:
        return Stream(store, multi_hook=multi_hook, accept_changes=accept_changes)
    check_shards(shards, store.train_batch_size_tokens, ranks().size)
    check_buffer(shards, store.n_batches_in_buffer, store.training_context_size)
    return Shards(
        store,
        shards,
        seed,
        ranks(),
        multi_hook=multi_hook,
        accept_changes=accept_changes,
        home=home,
    )


def divided(provider: Any, shards: int, seed: int) -> Any:
    """Where a training gets its batches, in so many shards.

    Args:
        provider: SAELens' activation store, which `stream_of` divides when it is read; samples of a
            synthetic model; or somebody's own, which one rank alone can read.
        shards: how many there are.
        seed: of the run.

    Raises:
        PluginError: the batches cannot be divided.
    """
    if shards == 1:
        return provider
    if saelens.is_synthetic(provider):
        from sae_plugins.resume.synthetic_shards import SyntheticShards

        check_shards(shards, provider.batch_size, ranks().size)
        return SyntheticShards(provider, shards, seed, ranks())
    from sae_lens.training.activations_store import ActivationsStore
    from sae_lens.training.prefetch import PrefetchingIterator

    of_store = isinstance(provider, (ActivationsStore, PrefetchingIterator))
    if not of_store and operator.length_hint(provider, 1):
        raise PluginError(
            f"{shards} data shards: the batches come from a {type(provider).__name__}, which "
            "nobody can divide; train with it in one process, with data_shards=1"
        )
    return provider


@contextmanager
def loaded(shards: int, seed: int) -> Iterator[None]:
    """Have stores draw their batches in so many shards, without a state, while this is open."""
    home = threading.get_ident()
    whole: list[Callable[[Any], Any]] = []

    def substitute(store: ActivationsStore, multi_hook: bool) -> Iterator[Any]:
        if shards == 1 or whole:
            return batches(store, multi_hook)
        stream = stream_of(store, shards, seed, home, multi_hook)
        whole.append(stream.whole)
        return stream

    def arrived(batch: Any) -> Any:
        return whole[0](batch) if whole else batch

    with saelens.data_loader(substitute), saelens.prefetched(arrived):
        yield


def divisible(
    store: ActivationsStore, part: Callable[[int, int], ActivationsStore]
) -> ActivationsStore:
    """Say how to make a store over shard `k` of `count` of a store's text: `part(k, count)`."""
    store.sae_plugins_part = part  # type: ignore[attr-defined]
    return store


def part_of(store: ActivationsStore, k: int, count: int) -> ActivationsStore:
    """A store over one shard of a store's text, or of its cached activations."""
    cached = store.cached_activation_dataset
    if cached is not None:
        check_rows(len(cached), count, store.store_batch_size_prompts)
    own = getattr(store, "sae_plugins_part", None)
    if own is not None:
        made: ActivationsStore = own(k, count)
        return made
    part = copy.copy(store)
    if cached is not None:
        part.cached_activation_dataset = split(cached, k, count)
    else:
        part.dataset = split(store.dataset, k, count)
        saelens.read_from_start(part)
    return part


def split(rows: Any, k: int, count: int) -> Any:
    """Shard `k` of rows; those that know how to divide themselves have a method `part`."""
    import datasets
    from datasets.distributed import split_dataset_by_node

    if hasattr(rows, "part"):
        return rows.part(k, count)
    if isinstance(rows, datasets.Dataset) and len(rows) < count:
        raise PluginError(
            f"--data_shards {count}: the text to train on has {len(rows)} row(s), and each shard "
            "needs one of its own; give a longer text, or fewer shards"
        )
    if isinstance(rows, datasets.IterableDataset) and rows.n_shards % count and k == 0:
        logger.warning(
            "the text has %d file(s), which is no multiple of the %d data shards, so that every "
            "rank reads all of it and leaves out what is for others; a --data_shards that divides "
            "%d is faster",
            *(rows.n_shards, count, rows.n_shards),
        )
    return split_dataset_by_node(rows, k, count)
