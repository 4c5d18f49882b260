"""CPU time of each of two ranks that train one SAE, as a ratio to one process that trains it.

    OMP_NUM_THREADS=1 python benchmarks/bench_ranks.py               # the embedded world, minutes
    OMP_NUM_THREADS=1 python benchmarks/bench_ranks.py --model FOLDER --text FOLDER \\
        --hook blocks.14.hook_resid_post --d_sae 2304
    OMP_NUM_THREADS=1 python benchmarks/bench_ranks.py --arms 8      # in lockstep, as in a study

Ranks are forked from one process, which has imported everything and loaded the language model, so
that start-up is apart: it is printed once. They have one thread each. A round trains in one
process, on the ranks, and in one process again; only ratios within a round count. The text is in as
many shards for one process as for two. The SAEs are compared, and must be the same.
"""

import argparse
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from harness import Ratio, _ratio, report

from sae_plugins.base.ranks import Ranks, join, ranks
from sae_plugins.base.saelens import no_bars
from sae_plugins.framework.attach import plugins
from sae_plugins.framework.forked import on_ranks
from sae_plugins.framework.trainer import PluginTrainer
from sae_plugins.resume.checkpoints import Checkpoints
from sae_plugins.resume.stream import Stream
from sae_plugins.runs.load import load_setup
from sae_plugins.runs.lockstep import LockstepRun, train
from sae_plugins.runs.setup import Setup
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settings import Settings
from sae_plugins.settings.settle import settle

MODEL, GATHER, STEP, MESSAGES = "language model", "gather", "SAE's step", "messages"
TIMED = {
    MODEL: [(Stream, "pull")],
    GATHER: [(Ranks, "whole")],
    STEP: [(PluginTrainer, "step")],
    MESSAGES: [(Ranks, "agree"), (Ranks, "all")],
}
COUNTED = ("all_gather_into_tensor", "all_reduce", "all_gather_object", "barrier")


class Parts:
    """CPU seconds of this process by part, and what it exchanges with others."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def watch(self) -> None:
        """Begin; there is no end, so that this is for processes that end soon."""
        for part, places in TIMED.items():
            for owner, name in places:
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        for name in COUNTED:
            setattr(dist, name, self._counted(name, getattr(dist, name)))

    def told(self, total: float, weights: bytes) -> dict[str, Any]:
        """What was watched, beside the seconds of the whole and a checksum of the SAEs."""
        return {
            "seconds": dict(self.seconds),
            "total": total,
            "calls": dict(self.calls),
            "bytes": self.bytes,
            "sha": hashlib.sha256(weights).hexdigest(),
        }

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - begin

        return timed

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if name == "all_gather_into_tensor":
                self.bytes += args[1].numel()
            elif name == "all_reduce":
                self.bytes += args[0].nbytes
            return function(*args, **kwargs)

        return counted


def trained(setup: Setup, settings: Settings) -> dict[str, Any]:
    """Train once on this rank; what it took."""
    parts = Parts()
    parts.watch()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(Path(scratch) / "checkpoints", every="0")
        with plugins(
            settings.plan,
            seed=settings.get("seed"),
            checkpoints=checkpoints,
            text=setup,
            data_shards=settings.data_shards,
        ):
            run = setup.prepare(Path(scratch))
            begin = time.process_time()
            with no_bars():
                run()
            total = time.process_time() - begin
        weights = (Path(scratch) / "sae_weights.safetensors").read_bytes()
    return parts.told(total, weights)


def in_lockstep(setup: Setup, settings: Settings, arms: int, scratch: Path) -> dict[str, Any]:
    """Train so many SAEs in lockstep, of which each rank has its share; what it took."""
    parts = Parts()
    parts.watch()
    saes = [
        LockstepRun(str(arm), setup.sharing(settings.for_saelens()), scratch / str(arm), plan)
        for arm, plan in enumerate([settings.plan] * arms)
    ]
    begin = time.process_time()
    failures = train(saes)
    total = time.process_time() - begin
    for error in failures.values():
        raise error
    ranks().patiently()
    weights = [(sae.folder / "sae_weights.safetensors").read_bytes() for sae in saes]
    return parts.told(total, b"".join(weights))


def work(found: dict[str, Any]) -> float:
    """Seconds of a rank that grow with the text: not those in which an SAE is built and saved."""
    return sum(found["seconds"].get(part, 0.0) for part in (MODEL, GATHER, STEP))


def settings_of(args: argparse.Namespace) -> Settings:
    """Of the run."""
    batch = args.batch
    line = [
        *("--d_sae", str(args.d_sae), "--training_tokens", str(args.steps * batch)),
        *("--train_batch_size_tokens", str(batch), "--heldout_tokens", "0"),
        *("--normalize_activations", "none", "--hook_name", args.hook),
        *("--n_batches_in_buffer", str(args.buffer), "--data_shards", str(args.shards)),
    ]
    if args.model:
        line += ["--model_name", args.model, "--dataset_path", args.text, "--streaming", "false"]
    return settle(train_flags(line))


def main() -> None:
    """Measure as many rounds as asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a folder with a language model (default the world's)")
    parser.add_argument("--text", help="with its text")
    parser.add_argument("--hook", default="blocks.1.hook_resid_post", help="its hook")
    parser.add_argument("--d_sae", type=int, default=2304, help="latents (default 2304)")
    parser.add_argument("--batch", type=int, default=1024, help="tokens of a step (default 1024)")
    parser.add_argument("--steps", type=int, default=40, help="steps of a run (default 40)")
    parser.add_argument("--buffer", type=int, default=32, help="its prompts (default 32)")
    parser.add_argument("--arms", type=int, default=1, help="SAEs in lockstep (default 1)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks beside one (default 2)")
    parser.add_argument("--shards", type=int, default=8, help="data shards (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    settings = settings_of(args)
    setup = load_setup(settings.for_saelens())
    startup = time.process_time() - begin

    def on(size: int) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:

            def act() -> dict[str, Any]:
                join()
                if args.arms == 1:
                    return trained(setup, settings)
                return in_lockstep(setup, settings, args.arms, Path(scratch))

            return on_ranks(size, act, limit=3600)

    on(1)  # a warm-up of the machine
    ratios: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(args.rounds):
        (before,), several, (after,) = on(1), on(args.ranks), on(1)
        if len({found["sha"] for found in (before, *several, after)}) > 1:
            raise RuntimeError("one process and the ranks gave different weights")
        alone = (work(before) + work(after)) / 2
        for rank, found in enumerate(several):
            ratios.setdefault(f"rank {rank}", []).append((work(found), alone))
            for part in (MODEL, GATHER, STEP, MESSAGES):
                taken = found["seconds"].get(part, 0.0), alone
                ratios.setdefault(f"rank {rank}: {part}", []).append(taken)
            whole = found["total"], (before["total"] + after["total"]) / 2
            ratios.setdefault(f"rank {rank}: all of the training", []).append(whole)
        print(f"round {round_ + 1}: {alone:.1f} s alone, ", end="")
        print(*(f"{work(found):.1f} s" for found in several), "on ranks", flush=True)
    results: list[Ratio] = [
        _ratio(name, *map(np.array, zip(*pairs, strict=True))) for name, pairs in ratios.items()
    ]
    title = f"CPU time of a rank of {args.ranks} / of language model and step in one process"
    report(
        f"{title} ({args.arms} x d_sae {args.d_sae}, batch {args.batch}, {args.steps} steps)",
        results,
        args.json,
    )
    steps, found = args.steps, several[0]
    print(f"  start-up, apart: {startup:.1f} s of each process, and its imports")
    print(f"  of a step, each rank sends {found['bytes'] / steps:,.0f} bytes, in ", end="")
    print(", ".join(f"{n / steps:.2f} {name}" for name, n in sorted(found["calls"].items())))


if __name__ == "__main__":
    main()
