"""Cost of writing a checkpoint, as a ratio to safetensors' own writing of the same tensors.

    python benchmarks/bench_checkpoint.py               # 1.4 GB a file, a few minutes
    python benchmarks/bench_checkpoint.py --folder /mnt/scratch --rounds 20

What a checkpoint does beyond handing bytes to safetensors: it looks for NaN, walks the tree, takes
a digest, and replaces the older file. Time is the wall's, since disks are waited for; the disk is
let come to rest before each file.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import Ratio, _ratio, report
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file

import sae_plugins
from sae_plugins.resume.state import _digest, _Encoder

D_IN, D_SAE, BATCH = 2304, 16384, 64
BUFFER_ROWS = 2**29 // (4 * D_IN)


class Buffer(Iterator[torch.Tensor]):
    """Batches, and half a gigabyte of activations that wait to be mixed, as a stream has them."""

    def __init__(self) -> None:
        rows = torch.randn(BUFFER_ROWS, D_IN)
        self.rows = {"undelivered": rows[: len(rows) // 2], "kept": rows[len(rows) // 2 :]}

    def __next__(self) -> torch.Tensor:
        return self.rows["kept"][:BATCH]

    def state_dict(self) -> dict[str, Any]:
        """The rows; views, as a stream's are."""
        return self.rows

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        self.rows = state


def trained(folder: Path) -> tuple[Any, sae_plugins.Checkpoints]:
    """A trainer in the middle of an accumulation window, with Adam's moments."""
    checkpoints = sae_plugins.Checkpoints(folder, every="0")
    provider = Buffer()
    with sae_plugins.plugins("hybrid-order", seed=0, checkpoints=checkpoints):
        sae = StandardTrainingSAE(
            StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=1.0)
        )
        config = SAETrainerConfig(
            total_training_samples=BATCH * 10**6, train_batch_size_samples=BATCH, lr_end=3e-5
        )
        trainer = SAETrainer(cfg=config, sae=sae, data_provider=provider)
        for _ in range(5):
            trainer.step(next(provider))
            trainer.n_training_steps += 1
    return trainer, checkpoints


def seconds(work: Callable[[], Any]) -> float:
    """Of the wall, from a disk at rest."""
    os.sync()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def interleave(
    baseline: Callable[[], Any], arms: dict[str, Callable[[], Any]], rounds: int
) -> tuple[list[Ratio], float]:
    """As the harness does, by the wall's clock; also the baseline's median seconds."""
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    references = []
    for round_ in range(rounds + 1):
        first = seconds(baseline)
        times = {name: seconds(arm) for name, arm in arms.items()}
        reference = (first + seconds(baseline)) / 2
        if round_ > 0:
            references.append(reference)
            for name, value in times.items():
                ratios[name].append(value / reference)
    return [_ratio(name, values) for name, values in ratios.items()], median(references)


def main() -> None:
    """Measure a checkpoint and what it consists of."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--folder", help="on the disk to measure; default the system's temporary")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        trainer, checkpoints = trained(Path(folder) / "checkpoints")
        tensors: dict[str, torch.Tensor] = {}
        _Encoder(tensors).encode(checkpoints._tree(), "")
        arms: dict[str, Callable[[], Any]] = {
            "a checkpoint": checkpoints.write,
            "of it: the look for NaN": trainer.is_finite,
            "of it: the tree": lambda: _Encoder({}).encode(checkpoints._tree(), ""),
            "of it: the digest": lambda: _digest("", tensors),
        }
        baseline = partial(save_file, tensors, Path(folder) / "plain.safetensors")
        results, plain = interleave(baseline, arms, args.rounds)
        assert checkpoints.path is not None
        size = checkpoints.path.stat().st_size / 2**20
    title = f"time / safetensors' ({size:.0f} MiB, {size / plain:.0f} MiB/s)"
    report(title, results, args.json)


if __name__ == "__main__":
    main()
