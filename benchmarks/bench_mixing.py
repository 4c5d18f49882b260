"""Cost of mixing activations, as a ratio to SAELens' own buffer, which serves the same batches.

    OMP_NUM_THREADS=1 python benchmarks/bench_mixing.py            # minutes, 1.9 GB of memory
    python benchmarks/bench_mixing.py --contexts 64 --rounds 20

Activations come as from a language model, 16 prompts of 128 tokens at a time, and are served 2048
at a time. They cost nothing to make here, so all that is timed is the buffer. Memory is the peak of
live tensor bytes over what the activations in the buffer take.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from harness import PeakBytes, Ratio, interleave, report
from sae_lens.training.mixing_buffer import mixing_buffer

from sae_plugins.resume.mixing import MixingBuffer

TOKENS, PROMPTS, BATCH = 128, 16, 2048
Buffer = Callable[[int, Iterator[torch.Tensor]], Iterator[torch.Tensor]]


def theirs(size: int, activations: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """SAELens' buffer."""
    return mixing_buffer(size, BATCH, activations)


def ours(size: int, activations: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Ours."""
    return MixingBuffer(size, BATCH, activations, largest=TOKENS * PROMPTS)


@dataclass(frozen=True)
class Memory:
    """The peak of memory in times of the buffer's size."""

    arm: str
    peak: float

    def __str__(self) -> str:
        return f"{self.arm:<37} {self.peak:6.3f}"


@dataclass(frozen=True)
class Microseconds:
    """The median of what a token takes."""

    arm: str
    each: float

    def __str__(self) -> str:
        return f"{self.arm:<37} {self.each:6.2f}"


def measure(contexts: int, d_in: int, rounds: int, path: str | None) -> None:
    """Compare both at one size of the buffer."""
    size = contexts * TOKENS
    came = torch.randn(TOKENS * PROMPTS, d_in)
    times = -(-5 * size // (2 * len(came)))  # two and a half buffers

    def activations() -> Iterator[torch.Tensor]:
        for _ in range(times):
            yield came

    taken: dict[str, list[float]] = {"SAELens": [], "ours": []}

    def run(name: str, buffer: Buffer) -> Callable[[], None]:
        def work() -> None:
            begin = time.process_time()
            for _ in buffer(size, activations()):
                pass
            seconds = time.process_time() - begin
            taken[name].append(1e6 * seconds / (times * len(came)))

        return work

    ratios: list[Ratio] = interleave(run("SAELens", theirs), {"ours": run("ours", ours)}, rounds)
    shape = f"{contexts} contexts of {TOKENS} tokens, d_in {d_in}"
    report(f"time over SAELens' ({shape})", ratios, path)
    each = [Microseconds(name, median(values[2:])) for name, values in taken.items()]
    report("microseconds per token", each, path)
    peaks = []
    for name, buffer in {"SAELens": theirs, "ours": ours}.items():
        with PeakBytes() as bytes_:
            for _ in buffer(size, activations()):
                pass
        peaks.append(Memory(name, bytes_.peak / (size * d_in * came.itemsize)))
    report("peak memory over the buffer's size", peaks, path)


def main() -> None:
    """Parse flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 512, 1024])
    parser.add_argument("--d_in", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="append the results to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    for contexts in args.contexts:
        measure(contexts, args.d_in, args.rounds, args.json)


if __name__ == "__main__":
    main()
