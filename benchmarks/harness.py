"""Paired timing and peak memory: both sides in one process, interleaved, compared as a ratio.

Machines drift by more than what is measured here, so nothing is timed alone: every round times
each arm once, in turn, and only the ratios within rounds count.
"""

import json
import platform
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Ratio:
    """An arm's cost over the baseline's: the median over rounds and its 95% interval."""

    arm: str
    ratio: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.arm:<37} {self.ratio:6.3f}  [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    baseline: Callable[[], None],
    arms: Mapping[str, Callable[[], None]],
    rounds: int,
    turns: int = 1,
) -> list[Ratio]:
    """Time each arm against the baseline in `rounds` rounds, after one round of warm-up.

    A round is so many `turns`, whose times are added. The baseline runs at both ends of a turn and
    its mean counts, so that linear drift cancels.
    """
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        reference, times = 0.0, dict.fromkeys(arms, 0.0)
        for _ in range(turns):
            reference += _seconds(baseline) / 2
            for name, arm in arms.items():
                times[name] += _seconds(arm)
            reference += _seconds(baseline) / 2
        if round_ > 0:
            for name, value in times.items():
                ratios[name].append(value / reference)
    return [_ratio(name, values) for name, values in ratios.items()]


def _ratio(name: str, values: list[float]) -> Ratio:
    interval = scipy.stats.bootstrap(
        (values,), np.median, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    return Ratio(name, float(np.median(values)), interval.low, interval.high, len(values))


def _seconds(work: Callable[[], None]) -> float:
    """GPU time where there is one, else the process's CPU time, which sees no other process."""
    if torch.cuda.is_available():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000
    begin = time.process_time()
    work()
    return time.process_time() - begin


class PeakBytes(TorchDispatchMode):
    """Counts the operations dispatched and the peak of live tensor bytes allocated inside.

    Scratch space inside a kernel is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        before = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in before and storage not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                self.live += size
                weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, size: int) -> None:
        self.live -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            sparse = value.layout is torch.sparse_coo
            for tensor in (value._indices(), value._values()) if sparse else (value,):
                yield tensor.untyped_storage()


def report(title: str, results: list[Any], path: str | None) -> None:
    """Print results, and write them with the machine and versions as JSON if `path` is given."""
    print(f"\n{title}")
    for result in results:
        print(f"  {result}")
    if path is not None:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        row = {"title": title, "machine": machine, "results": [asdict(r) for r in results]}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
