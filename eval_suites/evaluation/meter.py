"""What a row of an evaluation takes: time, and memory at its peak."""

from __future__ import annotations

import os
import resource
import sys
import time


class Meter:
    """What a row takes, from its making to `read`."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        self._device = device
        self._begin = (time.perf_counter(), _cpu_seconds())

    def read(self) -> dict[str, float]:
        """Seconds, CPU seconds (of child processes too), and the peak of memory in bytes.

        The peak is that of the device's memory on CUDA, else that of the process since it began.
        """
        begin, cpu = self._begin
        return {
            "seconds": round(time.perf_counter() - begin, 3),
            "cpu_seconds": round(_cpu_seconds() - cpu, 3),
            "peak_memory_bytes": self._peak(),
        }

    def _peak(self) -> int:
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system
