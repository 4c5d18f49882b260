"""Commands on several ranks, which are forked from the tests' process, and what befalls them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from faults import Faults, contents

from sae_plugins.entrypoints.main import main
from sae_plugins.framework.forked import Crashed, outcomes

TINY = [
    *("--training_tokens", "448", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "256"),
    *("--plugin", "activation-threshold", "--recorder.every", "1", "--recorder.figures", "false"),
]
"""7 steps in the tiny world, of 4 shards on any number of ranks."""
Words = list[str] | Callable[[int], list[str]]
HAPPENED = "happened"
"""A file in the working directory: the fault has."""


class Said(NamedTuple):
    """How a command ended on a rank."""

    code: int
    out: str
    err: str


class Fault(NamedTuple):
    """What befalls a rank, and when.

    Attributes:
        kind: a signal, or an exception.
        where: a step, a gather, a message, an exchange of values, or a change of a file.
        number: which of those that this rank does.
        rank: whose.
    """

    kind: str
    where: str
    number: int
    rank: int

    def happen(self) -> None:
        """Now."""
        Path(HAPPENED).write_text(str(os.getpid()))
        if self.kind == "exception":
            raise ValueError("a fault")
        os.kill(os.getpid(), getattr(signal, f"SIG{self.kind}"))

    def prepare(self) -> None:
        """Have it happen to this process."""
        import torch.distributed as dist

        from sae_plugins.framework.trainer import PluginTrainer

        if self.where == "file":
            halves = signal.SIGTERM if self.kind == "TERM" else signal.SIGKILL
            watched = Faults(self.number, halves)
            watched.happen = self.happen  # type: ignore[method-assign]
            watched.watch()
            return
        owner, name = {
            "step": (PluginTrainer, "step"),
            "gather": (dist, "all_gather_into_tensor"),
            "message": (dist, "all_reduce"),
            "exchange": (dist, "all_gather_object"),
        }[self.where]
        own, count = getattr(owner, name), 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == self.number:
                self.happen()
            return own(*args, **kwargs)

        setattr(owner, name, counted)


def command(
    words: Words, ranks: int, fault: Fault | None = None, limit: float = 120, **variables: str
) -> list[Said | Crashed]:
    """What `sae-plugins` says on each rank, one of which a fault may befall.

    Args:
        words: of the command line; or what gives those of a rank, in its process.
        ranks: how many there are.
        fault: what happens. Who is stopped is killed when all others have ended.
        limit: seconds in which all must have ended.
        variables: of the environment.
    """
    for old in [*Path().glob("ended-*"), *Path().glob(HAPPENED)]:
        old.unlink()

    def act() -> Said:
        rank = os.environ["RANK"]
        fresh()
        if fault is not None and str(fault.rank) == rank:
            fault.prepare()
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(words(int(rank)) if callable(words) else words)
        finally:
            Path(f"ended-{rank}").touch()
        return Said(code, out.getvalue(), err.getvalue())

    def started(ids: list[int]) -> None:
        if fault is not None and fault.kind == "STOP":
            others = [rank for rank in range(ranks) if rank != fault.rank]
            watcher = threading.Thread(
                target=_end, args=(ids[fault.rank], fault.rank, others), daemon=True
            )
            watcher.start()

    return outcomes(ranks, act, limit, started, **variables)


def _end(process: int, own: int, others: list[int]) -> None:
    """Kill a rank that was stopped when all others have ended."""
    while not all(Path(f"ended-{rank}").exists() for rank in others):
        time.sleep(0.02)
    while not Path(HAPPENED).exists():
        if Path(f"ended-{own}").exists():
            return
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def fresh() -> None:
    """As in a new process: what the tests' own has left would be in the way."""
    from tqdm import tqdm

    # tqdm's own lock is shared among forked processes, and stays locked when one is killed
    tqdm.set_lock(threading.RLock())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def train(words: Words, ranks: int, *more: Any, **kwargs: Any) -> list[Said | Crashed]:
    """As `command`, of `sae-plugins train`."""
    own = words if callable(words) else lambda rank: words
    return command(lambda rank: ["train", *own(rank)], ranks, *more, **kwargs)


def trained(words: list[str], ranks: int, folder: str) -> dict[str, Any]:
    """The contents of the folder of a run that must succeed."""
    found = train([*words, "--output_path", folder], ranks)
    assert [getattr(said, "code", said) for said in found] == [0] * ranks, found
    return contents(Path(folder))


def sentences(found: list[Said | Crashed]) -> str:
    """What all ranks together say where a command is refused: rank 0 alone may speak."""
    assert all(isinstance(said, Said) for said in found), found
    spoken = [said.err for said in found if isinstance(said, Said) and said.err]
    assert len(spoken) == 1, spoken
    return spoken[0]
