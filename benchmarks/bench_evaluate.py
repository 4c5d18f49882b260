"""How long `sae-plugins evaluate` takes for N SAEs, beside SAEBench's own entry points.

Arms, for each suite in turn, all in one process and on the same SAEs:

    ours                 one evaluation of all N, with an empty cache
    ours, warm cache     another one, with the cache that the first has left
    ours, exact          as the first, with `--exact`
    separate calls       of SAEBench, one per SAE, each into an empty folder
    one call             of SAEBench, for all SAEs

Every evaluation and every call loads the language model and the SAEs. The embedded world's texts
are generated once per arm. What SAEBench takes grows evenly with the SAEs, so that a few of them
(`--upstream_saes`) tell about N; the output says where numbers are such estimates.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import saebench_alone
import torch
from harness import report
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

from sae_plugins import world
from sae_plugins.entrypoints.evaluate_suites import shortcuts_off
from sae_plugins.eval_suites import registry
from sae_plugins.eval_suites.evaluation.evaluate import Evaluation, Request
from sae_plugins.eval_suites.evaluation.loading import load_subject
from sae_plugins.eval_suites.evaluation.manifest import Row
from sae_plugins.eval_suites.inputs import world_data
from sae_plugins.eval_suites.inputs.models import load_language_model
from sae_plugins.eval_suites.saebench.facts import default_dtype

SUITES = ("core", "absorption", "scr", "sparse-probing")
HOOK = "blocks.1.hook_resid_post"
SHAPE = {"d_in": 192, "d_sae": 1024}
BATCH, BATCHES, STEPS = 512, 40, 200
SEED = 0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIGS = {
    "standard": lambda: StandardTrainingSAEConfig(l1_coefficient=3.0, **SHAPE),
    "topk": lambda: TopKTrainingSAEConfig(k=16, **SHAPE),
    "batchtopk": lambda: BatchTopKTrainingSAEConfig(k=16, **SHAPE),
    "jumprelu": lambda: JumpReLUTrainingSAEConfig(l0_coefficient=3.0, **SHAPE),
}


Spent = np.ndarray[Any, np.dtype[np.float64]]
"""Seconds of the wall's clock and of the CPU."""


@dataclass(frozen=True)
class Seconds:
    """What one arm of one suite takes, by the wall's clock and of the CPU."""

    suite: str
    arm: str
    saes: int
    wall: float
    cpu: float
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.suite:<15}{self.arm:<18}{self.saes:>3} SAEs {self.wall:8.1f} s wall "
            f"{self.cpu:8.1f} s CPU  {self.note}"
        ).rstrip()


@dataclass(frozen=True)
class Share:
    """What ours takes as a share of another arm."""

    suite: str
    arms: str
    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.suite:<15}{self.arms:<36} {self.wall:6.3f} wall {self.cpu:6.3f} CPU"


def train_saes(count: int, folder: Path) -> list[Path]:
    """Briefly trained SAEs of all architectures in turn, each in a folder of its own."""
    model = world.load_hooked_transformer()
    text = "\n".join(world.load_text("train")[:1000]["text"])
    tokens = model.to_tokens(text, truncate=False)[0, : BATCH * BATCHES].view(-1, 128)
    with torch.no_grad():
        _, found = model.run_with_cache(tokens, names_filter=[HOOK], stop_at_layer=2)
    batches = found[HOOK].flatten(0, 1).split(BATCH)
    metadata = {"model_name": world.NAME, "hook_name": HOOK, "prepend_bos": True}
    folders = []
    for number in range(count):
        name = list(CONFIGS)[number % len(CONFIGS)]
        torch.manual_seed(number)
        sae: Any = TrainingSAE.from_dict(
            CONFIGS[name]().to_dict() | {"metadata": SAEMetadata(**metadata).to_dict()}
        )
        config = SAETrainerConfig(
            total_training_samples=BATCH * STEPS, train_batch_size_samples=BATCH, lr_end=3e-5
        )
        trainer: Any = SAETrainer(cfg=config, sae=sae, data_provider=cycle(batches))
        for batch in (batches * STEPS)[:STEPS]:
            trainer.step(batch)
            trainer.n_training_steps += 1
        folders.append(folder / f"{name}-{number}")
        sae.save_inference_model(str(folders[-1]))
    return folders


class Silent:
    """Hears of an evaluation, and fails with it."""

    def stage(self, text: str) -> None:
        """Nothing is shown."""

    def finished(self, row: Row, again: bool) -> None:
        """A row that is no result would cost nothing."""
        assert row.status == "ok", row.reason
        assert not again


def timed(work: Callable[[], Any]) -> Spent:
    """What something takes, of the wall's clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu])


def forget_texts() -> None:
    """Have the embedded world's texts generated again."""
    world_data._world_rows.cache_clear()
    world_data._world_splits.cache_clear()


def ours(suite: Any, folders: list[Path], cache: Path, out: Path, exact: bool = False) -> None:
    """One evaluation."""
    settings = suite.settings("quick", shortcuts_off(suite) if exact else {})
    request = Request(
        [str(folder) for folder in folders], {suite.name: (suite, settings)}, [SEED], "quick",
        out, cache, device=DEVICE,
    )  # fmt: skip
    Evaluation(request).run(Silent())


def theirs(suite: Any, folders: list[Path], out: Path) -> None:
    """One call of SAEBench."""
    model = load_language_model(world.NAME, DEVICE, default_dtype(world.NAME))
    subjects = [load_subject(str(folder), DEVICE) for folder in folders]
    saes = [(subject.name, subject.copy(DEVICE, model.dtype)) for subject in subjects]
    results = saebench_alone.run(
        suite, saes, model, world_data.WorldData(), suite.settings("quick", {}), SEED, out
    )
    assert len(results) == len(folders)


def measure(
    name: str, folders: list[Path], upstream: int, scratch: Path, say: Callable[[Seconds], None]
) -> None:
    """Say what every arm of one suite takes."""
    suite, n, work = registry.load(name), len(folders), scratch / name

    def evaluate(arm: str, cache: str, exact: bool = False) -> None:
        forget_texts()
        spent = timed(lambda: ours(suite, folders, work / cache, work / arm, exact))
        say(Seconds(name, arm, n, *spent))

    def call(saes: list[Path], out: str) -> Spent:
        return timed(lambda: theirs(suite, saes, work / out))

    evaluate("ours", "cache")
    evaluate("ours, warm cache", "cache")
    evaluate("ours, exact", "another cache", exact=True)
    if not upstream:
        return
    forget_texts()
    first, *others = [call(folders[i : i + 1], f"call {i}") for i in range(upstream)]
    # all calls but the first find the texts at hand
    separate = first + (n - 1) * np.mean(others or [first], axis=0)
    note = f"{n} calls from {upstream} measured" if upstream < n else ""
    say(Seconds(name, "separate calls", n, *separate, note))
    forget_texts()
    together = call(folders[:upstream], "one call")
    if upstream < n:
        together += (n - upstream) * (together - first) / (upstream - 1)
        note = f"{n} SAEs from a call with {upstream} and one with 1"
    say(Seconds(name, "one call", n, *together, note))


def shares(rows: list[Seconds]) -> list[Share]:
    """Ours as shares of theirs, by suite and in total."""
    found = []
    for suite in dict.fromkeys(row.suite for row in rows):
        arms = {row.arm: row for row in rows if row.suite == suite}
        for ours_ in ("ours", "ours, warm cache", "ours, exact"):
            for other in ("separate calls", "one call"):
                if other in arms:
                    a, b = arms[ours_], arms[other]
                    found.append(Share(suite, f"{ours_} / {other}", a.wall / b.wall, a.cpu / b.cpu))
    return found


def totals(rows: list[Seconds]) -> list[Seconds]:
    """Sums over suites."""
    arms = dict.fromkeys(row.arm for row in rows)
    return [
        Seconds("total", arm, each[0].saes, sum(r.wall for r in each), sum(r.cpu for r in each))
        for arm in arms
        if (each := [row for row in rows if row.arm == arm])
    ]


def main() -> None:
    """Measure every suite."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--saes", type=int, default=12, help="how many (default 12)")
    parser.add_argument(
        "--upstream_saes",
        type=int,
        help="so many in SAEBench's own calls, 0 for none (default all)",
    )
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=SUITES, help="default all")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    upstream = args.saes if args.upstream_saes is None else min(args.saes, args.upstream_saes)
    if upstream == 1 < args.saes:
        parser.error("one SAE does not tell what another one adds: --upstream_saes 0, 2 or more")
    rows: list[Seconds] = []

    def say(row: Seconds) -> None:
        print(f"  {row}", flush=True)
        rows.append(row)

    with tempfile.TemporaryDirectory() as scratch:
        folders = train_saes(args.saes, Path(scratch) / "saes")
        threads = torch.get_num_threads()
        print(f"preset quick, {threads} threads, load {os.getloadavg()[0]:.1f} before", flush=True)
        for name in args.suite:
            measure(name, folders, upstream, Path(scratch), say)
    rows += totals(rows)
    report(f"seconds, {threads} threads, load {os.getloadavg()[0]:.1f} after", rows, args.json)
    report("ours as a share", shares(rows), args.json)


if __name__ == "__main__":
    main()
