"""The processes that train together: which of them this one is, and what all of them agree on.

torchrun starts them, or srun where MASTER_ADDR says at which address they meet. Whoever was started
alone is rank 0 of 1 and asks nobody, so that all else is written once, for any number of ranks.

Every wait has a limit. Who finds another rank gone closes its own connections, so that nobody waits
for it in turn, and calls the roll over the store at which they met: a rank that failed has left its
reason there, one that lives answers, and the others are named. Rank 0 speaks for all.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_plugins.base.errors import Paused, SaePluginsError
from sae_plugins.base.gpus import identity, see_only, visible
from sae_plugins.base.rendezvous import Rendezvous, Silent
from sae_plugins.base.started import restarts, started

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 120.0
"""Seconds that a rank waits for another, unless it is told otherwise."""
_GRACE = 5.0
"""Seconds in which whoever lives answers when the roll is called."""
_POLL = 0.05
"""Seconds between two looks at the store."""
_FOREVER = timedelta(days=365)
_TOLD = 4
"""Differences between ranks of which each is told."""
_INTERRUPTED = "interrupted"
_PAUSED = "paused"


class RankError(SaePluginsError):
    """Another rank is gone, or has said what ended this one; without a sentence where it has."""

    exit_code = 1


class _Told(NamedTuple):
    """What a rank says in place of a value, and the code with which it would end."""

    sentences: list[str]
    code: int


class Ranks:
    """The ranks of a training, as one of them sees them.

    Attributes:
        rank: this one's number.
        size: how many there are.
        limit: seconds that one waits for another.
    """

    def __init__(self, rank: int = 0, size: int = 1, limit: float = LIMIT) -> None:
        """A rank that has not met the others."""
        self.rank, self.size, self.limit = rank, size, limit
        self._at = Rendezvous(rank, size, limit)
        self._patient: Any = None
        self._answered: set[int] = set()
        self._restarts = 0

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes files, prints and logs: rank 0."""
        return self.rank == 0

    @property
    def beside(self) -> int:
        """How many ranks are on this machine, this one included."""
        found = os.environ
        return int(found.get("LOCAL_WORLD_SIZE") or found.get("SLURM_NTASKS_PER_NODE") or self.size)

    @property
    def restarts(self) -> int:
        """How often these ranks have been started again, as the one says that counts most.

        On several machines, torchrun counts where a rank has died.
        """
        return max(restarts(), self._restarts)

    def meet(self) -> None:
        """Find the others.

        Raises:
            RankError: they did not all come in time, or two have the same GPU.
            Paused: the run has stopped to go on later, and torchrun has started it again at once.
        """
        if self.size == 1:
            return
        self._take_gpu()
        try:
            self._at.connect()
            if self._at.is_paused():
                raise Paused if self.writes else self.only_first(code=Paused.exit_code)
            store = self._at.begin()
            self._at.beside(lambda: self._begin(store))
        except Silent as error:
            raise RankError(str(error)) from error
        except (RuntimeError, ValueError) as error:
            missing = self._at.missing()
            who = _named(missing) if missing else "the others"
            raise RankError(
                f"rank {self.rank} waited {self.limit:g} s for {who} ({error}): look at what they "
                "said, or give --rank_timeout more seconds"
            ) from error
        met = self.all((socket.gethostname(), identity(), restarts()), patiently=True)
        self._restarts = max(count for *_, count in met)
        self._check_gpus([(host, gpu) for host, gpu, _ in met])

    def _begin(self, store: Any) -> None:
        """Connect with the others, whose addresses are in the store."""
        import torch
        import torch.distributed as dist

        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.limit),
        )
        self._patient = dist.new_group(backend="gloo", timeout=_FOREVER)

    def _take_gpu(self) -> None:
        """See one GPU alone, which is then `cuda` in all threads and on all ranks."""
        gpus, found = visible(), os.environ
        local = int(found.get("LOCAL_RANK") or found.get("SLURM_LOCALID") or 0)
        if len(gpus) > 1 and local >= len(gpus):
            raise SaePluginsError(
                f"{self.beside} ranks were started on a machine with {len(gpus)} GPUs: each needs "
                "one of its own, so start no more than there are"
            )
        if gpus:
            see_only(gpus[local % len(gpus)])

    def _check_gpus(self, found: list[tuple[str, str | None]]) -> None:
        """Refuse a GPU that several ranks have, as where each sees one alone."""
        for host, gpu in {one: None for one in found if one[1] is not None}:
            who = [rank for rank, one in enumerate(found) if one == (host, gpu)]
            if len(who) > 1:
                self._leave()
                raise self.only_first(
                    f"{_named(who)} have the same GPU, {gpu} of {host}: start one for each GPU, "
                    "and with srun give each its own (--gpus-per-task 1), or hide all GPUs "
                    "(CUDA_VISIBLE_DEVICES=) to train on CPUs",
                    code=2,
                )

    # -- what they agree on --------------------------------------------------------------------

    def agree(self, *flags: bool) -> list[bool]:
        """Flags as any of the ranks has them; one small message.

        Raises:
            RankError: a rank is gone.
        """
        if self.size == 1:
            return list(flags)
        import torch
        import torch.distributed as dist

        common = torch.tensor(flags, dtype=torch.uint8, device="cpu")
        with self._waiting():
            dist.all_reduce(common, dist.ReduceOp.MAX)
        return [bool(flag) for flag in common]

    def all(self, value: Any, *, patiently: bool = False) -> list[Any]:
        """A plain value of each rank, in their order; patiently where some may take long.

        Raises:
            RankError: a rank is gone, or has failed in what all do `together`.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        if patiently:
            self.patiently()
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value)
        if any(isinstance(one, _Told) for one in values):
            raise self._common(values)
        return values

    def first(self, value: Any) -> Any:
        """A plain value as rank 0 has it; the others wait until it does.

        Raises:
            RankError: a rank is gone.
        """
        return self.all(value, patiently=True)[0]

    def patiently(self) -> None:
        """Wait until all ranks come here, however long that takes, as long as they live.

        Raises:
            RankError: one has given no sign of life for too long.
        """
        if self.size == 1:
            return
        import torch.distributed as dist

        begun = time.monotonic()
        with self._waiting():  # in which a rank that dies closes its connections
            here = dist.barrier(group=self._patient, async_op=True)
            while not here.is_completed():
                if late := self._at.late(begun):
                    raise RuntimeError(f"Timed out waiting for {_named(late)}")
                time.sleep(_POLL)
            here.wait()

    def whole(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all ranks, in their order, [size * n, ...]; one all-gather.

        Raises:
            RankError: a rank is gone.
        """
        if self.size == 1:
            return rows
        import torch
        import torch.distributed as dist

        rows = rows.contiguous()
        found = rows.new_empty(self.size * len(rows), *rows.shape[1:])
        with self._waiting():  # as bytes, of which every backend takes any number
            dist.all_gather_into_tensor(found.view(torch.uint8), rows.view(torch.uint8))
        return found

    def same(self, what: str, facts: dict[str, Any]) -> None:
        """Refuse to go on where ranks differ in what must be the same.

        Args:
            what: they are, in words.
            facts: JSON values by name.

        Raises:
            RankError: names the ranks, and what differs.
        """
        found = self.all(facts)
        for rank, others in enumerate(found):
            names = [n for n in {**found[0], **others} if found[0].get(n) != others.get(n)]
            if names:
                told = "; ".join(
                    f"{name} is {_short(found[0].get(name))} on rank 0 and "
                    f"{_short(others.get(name))} on rank {rank}"
                    for name in names[:_TOLD]
                )
                if more := len(names[_TOLD:]):
                    told += f"; {more} more differ"
                raise self.only_first(f"{what} must be the same on all ranks: {told}", code=2)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ends a rank inside ends all; what is wrong is said once, and whose it is.

        Raises:
            RankError: on the other ranks.
        """
        try:
            yield
        except Exception as error:
            if self.size == 1 or isinstance(error, RankError):
                raise
            try:
                self.all(_Told(_told(error), getattr(error, "exit_code", 1)), patiently=True)
            except RankError as common:
                raise common from error
            raise
        self.all(None, patiently=True)

    def _common(self, found: list[Any]) -> RankError:
        """What ranks say that failed, as one error: once, where they say the same."""
        by_text: dict[str, list[int]] = {}
        for rank, one in enumerate(found):
            for sentence in one.sentences if isinstance(one, _Told) else ():
                by_text.setdefault(sentence, []).append(rank)
        everybody = [*range(self.size)]
        sentences = [
            text if ranks == everybody else f"{_named(ranks)}: {text}"
            for text, ranks in by_text.items()
        ]
        return self.only_first(*sentences, code=max(o.code for o in found if isinstance(o, _Told)))

    def only_first(self, *sentences: str, code: int = 1) -> RankError:
        """An error that all ranks raise, of which rank 0 tells."""
        error = RankError(*sentences if self.writes else ())
        error.exit_code = code
        return error

    # -- a rank that is gone -------------------------------------------------------------------

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Leave the others in the end, and tell them if an error is the reason."""
        try:
            yield
        except RankError:
            self._leave()
            raise
        except BaseException as error:
            if self.size == 1:
                raise
            told, interrupted = _told(error), isinstance(error, KeyboardInterrupt)
            self._at.patience = _GRACE
            if isinstance(error, Paused):
                self._at.pause()
            self._at.tell(f"stopped/{self.rank}", "\n".join(told))
            self._leave()
            if self.writes or not self._awaited(lambda: self._is_told(told)):
                raise
            silent = RankError()
            silent.exit_code = getattr(error, "exit_code", 130 if interrupted else 1)
            raise silent from error
        self._leave()

    def _is_told(self, told: list[str]) -> bool:
        """Whether rank 0 says what has ended this rank, which may be what has ended that one."""
        same = self._at.knows("stopped/0") and self._at.known("stopped/0") == "\n".join(told)
        return same or self._at.knows(f"told/{self.rank}")

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            lost = self._lost(error)
            if self._at.is_paused():
                lost.exit_code = Paused.exit_code
            raise lost from error

    def _lost(self, error: RuntimeError) -> RankError:
        """Call the roll, and say who is missing and why."""
        self._at.patience = _GRACE
        self._at.tell(f"here-still/{self.rank}", "")
        self._leave()
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._awaited(lambda: all(self._answers(rank) for rank in others))
        if self._at.lost:  # and nobody knows who else is there to say it, unless rank 0 was
            return RankError(*(() if 0 in self._answered else (self._at.lost,)))
        reasons = {
            rank: self._at.known(f"stopped/{rank}") for rank in others if self._stopped(rank)
        }
        silent = [rank for rank in others if not self._answers(rank)]
        present = [self.rank, *(r for r in others if self._answers(r) and r not in reasons)]
        if self.rank != min(present) or reasons.get(0) == _INTERRUPTED:  # as rank 0 says itself
            return self._coded(RankError(), reasons)
        for rank in reasons:
            self._at.tell(f"told/{rank}", "")
        sentences = [f"rank {rank} stopped: {text}" for rank, text in reasons.items()]
        if silent:
            has = "has" if len(silent) == 1 else "have"
            slow = "imed out" in str(error)  # as gloo says it; "Connection closed" else
            what = f"did not answer within {self.limit:g} s" if slow else f"{has} died"
            sentences.append(f"{_named(silent)} {what}, so that the training stops")
        if not sentences:
            sentences.append(f"the ranks could not exchange their batches: {error}")
        return self._coded(RankError(*sentences), reasons)

    @staticmethod
    def _coded(error: RankError, reasons: dict[int, str]) -> RankError:
        if _INTERRUPTED in reasons.values():
            error.exit_code = 130
        return error

    def _answers(self, rank: int) -> bool:
        if rank not in self._answered:
            if not (self._at.knows(f"here-still/{rank}") or self._stopped(rank)):
                return False
            self._answered.add(rank)
        return True

    def _stopped(self, rank: int) -> bool:
        return self._at.knows(f"stopped/{rank}")

    def _leave(self) -> None:
        """Close the connections, so that nobody waits for this rank."""
        self._at.leave()
        if self.size > 1:
            import torch.distributed as dist

            with suppress(Exception):
                dist.destroy_process_group()

    def _awaited(self, is_so: Callable[[], bool]) -> bool:
        end = time.monotonic() + _GRACE
        while not is_so():
            if time.monotonic() > end or self._at.lost:
                return False
            time.sleep(_POLL)
        return True


def _told(error: BaseException) -> list[str]:
    if isinstance(error, SaePluginsError):
        return [str(sentence) for sentence in error.args]
    if isinstance(error, KeyboardInterrupt):
        return [_PAUSED if isinstance(error, Paused) else _INTERRUPTED]
    return [f"{type(error).__name__}: {error}"]


def _named(ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks))
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_own = Ranks()


def ranks() -> Ranks:
    """This process's, which are alone until `join`."""
    return _own


def join(limit: float = LIMIT) -> Ranks:
    """Meet the other ranks, if this process was started as one of several.

    Args:
        limit: seconds that one waits for another.

    Raises:
        RankError: they did not all come in time.
    """
    global _own
    if _own.size == 1 and started()[1] > 1:
        met = Ranks(*started(), limit)
        met.meet()
        _own = met
    return _own


def forget() -> None:
    """Be alone again, in a process that was forked from a rank or in which a test was one."""
    global _own
    _own = Ranks()
