"""Paired timing and peak memory: both sides in one process, interleaved, compared as a ratio.

Machines drift by more than what is measured here, so nothing is timed alone: every round times
each arm once, in turn, and only the ratios within rounds count.
"""

import contextlib
import json
import math
import os
import platform
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
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
    seconds: float
    """What a round of the arm takes, the median."""
    baseline: float
    """What a round of the baseline takes, the median."""

    def __str__(self) -> str:
        return f"{self.arm:<37} {self.ratio:6.3f}  [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    baseline: Callable[[], None],
    arms: Mapping[str, Callable[[], None]],
    rounds: int,
    turns: int = 1,
    budget: float = math.inf,
) -> list[Ratio]:
    """Time each arm against the baseline in `rounds` rounds, after one round of warm-up.

    A round is so many `turns`, whose times are added. The baseline runs at both ends of a turn and
    its mean counts, so that linear drift cancels. After so many seconds as `budget` has, no round
    begins any more, but for the first two.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    references: list[float] = []
    end = time.monotonic() + budget
    for round_ in range(rounds + 1):
        if round_ > 2 and time.monotonic() > end:
            break
        reference, taken = 0.0, dict.fromkeys(arms, 0.0)
        for _ in range(turns):
            reference += _seconds(baseline) / 2
            for name, arm in arms.items():
                taken[name] += _seconds(arm)
            reference += _seconds(baseline) / 2
        if round_ > 0:
            references.append(reference)
            for name, value in taken.items():
                times[name].append(value)
    return [_ratio(name, np.array(values), np.array(references)) for name, values in times.items()]


def _ratio(name: str, times: Any, references: Any) -> Ratio:
    """The interval is the percentile bootstrap's."""
    ratios = times / references
    drawn = np.random.default_rng(0).choice(ratios, (9999, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    seconds = float(np.median(times)), float(np.median(references))
    return Ratio(name, float(np.median(ratios)), float(low), float(high), len(ratios), *seconds)


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


class CudaPeak:
    """The peak of the memory that a CUDA device gives away inside, above what it had given."""

    def __enter__(self) -> "CudaPeak":
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: Any) -> None:
        self.peak = torch.cuda.max_memory_allocated() - self._before


def measured_peak() -> Any:
    """A context that has the `peak` of bytes allocated inside: the GPU's where there is one."""
    return CudaPeak() if torch.cuda.is_available() else PeakBytes()


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            sparse = value.layout is torch.sparse_coo
            for tensor in (value._indices(), value._values()) if sparse else (value,):
                yield tensor.untyped_storage()


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "sae_lens": version("sae-lens"),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The name that Linux gives the processor, or Python's."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def report(title: str, results: list[Any], path: str | None) -> None:
    """Print results, and write them with the machine and versions as JSON if `path` is given."""
    print(f"\n{title}")
    for result in results:
        print(f"  {result}")
    if path is not None:
        row = {"title": title, "machine": machine(), "results": [asdict(r) for r in results]}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
