"""SAELens' mixing buffer, without its copies.

SAELens joins the whole buffer with every batch of the language model, and copies it once more to
shuffle it. Here a row stays where it was written until it is served, and an index of the rows is
shuffled in their stead. The batches, and the random numbers that are drawn for them, are bitwise
those of SAELens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

INDEX_BYTES = 24
"""Of an index of the rows, per row, while it is shuffled."""


def most_rows(size: int, batch_size: int, mix_fraction: float, largest: int) -> int:
    """How many rows a mixing buffer holds at most.

    Args:
        size: rows from which on it serves.
        batch_size: rows that it serves at a time.
        mix_fraction: of `size`, the part that stays to be mixed with what comes next.
        largest: how many rows come at a time, at most.
    """
    before = size
    if largest > batch_size:  # then what stays may be more than what it serves from
        before = max(size, int(size * mix_fraction) + batch_size)
    return before - 1 + largest


class MixingBuffer(Iterator[Tensor]):
    """Batches [batch_size, ...] of rows that come in order, mixed with those that came before.

    Its state is `undelivered`, rows to serve before more come in, and `kept`, those to be mixed
    with what comes next. The random state, which it draws from, is not part of it.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        activations: Iterable[Tensor],
        mix_fraction: float = 0.5,
        largest: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Make an empty one; nothing is read yet.

        Args:
            size: rows from which on it serves.
            batch_size: rows that it serves at a time.
            activations: what comes in, a tensor [n, ...] at a time.
            mix_fraction: of `size`, the part that stays; with 0, rows are served as they come.
            largest: how many rows come at a time, at most. Where more come, the buffer is copied
                to make room.
            generator: what shuffles; None for the global random state.
        """
        if size < batch_size:
            raise ValueError("Buffer size must be greater than or equal to batch size")
        if not 0 <= mix_fraction <= 1:
            raise ValueError("mix_fraction must be in [0, 1]")
        self._size, self._batch_size = size, batch_size
        self._mix_fraction, self._generator = mix_fraction, generator
        self._room = most_rows(size, batch_size, mix_fraction, largest)
        self._rows: Tensor | None = None  # [room, ...]
        # Where in `_rows` the row number i is. Those from `_count` on are free, those before
        # `_served` have been served, and those from there to `_cutoff` are served next.
        self._slots = torch.empty(0, dtype=torch.long, device="cpu")
        self._served = self._cutoff = self._count = 0
        # from an earlier one: rows to serve, and rows to begin with
        self._ready: deque[Tensor] = deque()
        self._kept: Tensor | None = None
        self._device = torch.device("cpu")
        self._batches = self._mixed(activations)

    @torch.no_grad()
    def __next__(self) -> Tensor:
        return next(self._batches)

    def _mixed(self, activations: Iterable[Tensor]) -> Iterator[Tensor]:
        while self._ready:
            # A copy lies in memory as all other batches do, and products depend on that.
            yield self._ready.popleft().to(self._device, copy=True)
        if self._kept is not None:
            for rows in self._kept.split(self._batch_size):
                self._add(rows.to(self._device))
            self._kept = None
        for rows in activations:
            self._add(rows)
            del rows  # which takes memory while it is served
            if self._count >= self._size:
                if self._mix_fraction > 0:
                    order = torch.randperm(self._count, generator=self._generator).to(
                        self._slots.device
                    )
                    self._slots[: self._count] = self._slots[order]
                spare = self._count - int(self._size * self._mix_fraction)
                yield from self._serve(max(1, spare // self._batch_size))
        yield from self._serve(self._count // self._batch_size)

    def _add(self, rows: Tensor) -> None:
        end = self._count + len(rows)
        if self._rows is None or end > len(self._rows):
            self._rows = self._with_room_for(end, rows)
        self._rows.index_copy_(0, self._slots[self._count : end], rows)
        self._count = end

    def _with_room_for(self, count: int, like: Tensor) -> Tensor:
        there, room = len(self._slots), max(count, self._room)
        free = torch.arange(there, room, device=like.device)
        self._slots = torch.cat([self._slots.to(like.device), free])
        empty = like.new_empty((room - there, *like.shape[1:]))
        return empty if self._rows is None else torch.cat([self._rows, empty])

    def _serve(self, batches: int) -> Iterator[Tensor]:
        self._cutoff = batches * self._batch_size
        while self._served < self._cutoff:
            assert self._rows is not None
            wanted = self._slots[self._served : self._served + self._batch_size]
            self._served += self._batch_size
            yield self._rows.index_select(0, wanted)
        self._forget_served()

    def _forget_served(self) -> None:
        """Make the places of rows that were served free, and count from the first of the others."""
        self._slots = self._slots.roll(-self._served)
        self._cutoff, self._count = self._cutoff - self._served, self._count - self._served
        self._served = 0

    # -- the state -----------------------------------------------------------------------------

    def load(
        self, undelivered: Iterable[Tensor], kept: Tensor | None, device: torch.device
    ) -> None:
        """Go on where another one was; nothing may have been served yet.

        Args:
            undelivered: rows to serve first, whole batches of them.
            kept: rows to be mixed with what comes next.
            device: of the batches.
        """
        # Rows wait in host memory until they are wanted, so that the device holds them once.
        for rows in undelivered:
            self._ready.extend(rows.cpu().split(self._batch_size))
        self._kept = None if kept is None else kept.cpu()
        self._device = device

    def state(self) -> tuple[list[Tensor], Tensor | None]:
        """The rows that are undelivered, and those that are kept.

        They are views, which hold until the next batch is wanted.
        """
        if self._rows is None:
            return list(self._ready), self._kept
        self._forget_served()
        self._put_in_order(self._rows)
        undelivered, kept = self._rows[: self._count].split(
            [self._cutoff, self._count - self._cutoff]
        )
        return ([undelivered] if len(undelivered) else []), kept

    @torch.no_grad()
    def _put_in_order(self, rows: Tensor) -> None:
        """Move rows so that number i is at place i; a batch of them at a time is held twice."""
        slots = self._slots
        numbers = torch.empty_like(slots)  # of the row at each place
        numbers[slots] = torch.arange(len(slots), device=slots.device)
        for start in range(0, self._count, self._batch_size):
            end = min(start + self._batch_size, self._count)
            here = torch.arange(start, end, device=slots.device)
            sources = slots[start:end].clone()
            arriving = rows.index_select(0, sources)
            # What was here takes the places that become free. All before `start` is in order.
            leaving, freed = here[numbers[start:end] >= end], sources[sources >= end]
            rows[freed] = rows[leaving]
            rows[start:end] = arriving
            slots[numbers[leaving]], numbers[freed] = freed, numbers[leaving]
            slots[start:end] = numbers[start:end] = here
