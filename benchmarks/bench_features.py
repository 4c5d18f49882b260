"""What `sae-plugins features` takes: time beside the language model's own, memory, and size.

    python benchmarks/bench_features.py                            # the embedded world: a minute
    python benchmarks/smollm2.py FOLDER                            # a real model, and text for it
    python benchmarks/bench_features.py --smollm2 FOLDER           # ten minutes of a CPU core

The first trains a small SAE of 768 features on the embedded world and makes its pages. The second
makes those of an SAE of 16,384 features at layer 10 of SmolLM2-135M, whose decoder rows are random:
what pages take depends on the shape and on how many features fire, which is 50 at each token.

Time is the process's CPU time, without imports. The passes of the language model are timed inside
the very run, and end at the SAE's hook; the ratio is that of all that follows the loading to them,
with a 95% bootstrap interval over batches. Memory is the resident set, sampled 50 times a second.
"""

import argparse
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from harness import report
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_plugins.entrypoints.main import main as command
from sae_plugins.features import text
from sae_plugins.features.build import Request, build

HOOK, D_IN, D_SAE, K, CONTEXT = "blocks.10.hook_resid_post", 576, 16384, 50, 128
WORLD_TOKENS, SMOLLM2_TOKENS = 60_000, 200_000
TRAINED = "--recipe hybrid-order-demo --training_tokens 300000 --d_sae 768 --heldout_tokens 0"
MB = 1e6


@dataclass
class Clock:
    """Hears of the work of `build`, and keeps the CPU time at which each stage begins."""

    stages: dict[str, float] = field(default_factory=dict)
    batches: list[tuple[float, float]] = field(default_factory=list)
    """Of each batch of prompts, the seconds of the language model and those of the rest."""
    model: float = 0.0
    resident: float = 0.0
    """Bytes when the language model and the SAE are loaded."""
    _last: float = 0.0

    def stage(self, text: str) -> None:
        """A stage begins."""
        self._last = self.stages[text.split()[0]] = time.process_time()
        if text.startswith("reading"):
            self.resident = resident()

    def read(self, tokens: int) -> None:
        """A batch has been read."""
        now = time.process_time()
        self.batches.append((self.model, now - self._last - self.model))
        self._last, self.model = now, 0.0


@dataclass(frozen=True)
class Cost:
    """What pages took."""

    what: str
    tokens: int
    ratio: float
    low: float
    high: float
    seconds: float
    """CPU seconds from the loaded model to the end."""
    loading: float
    model: float
    """CPU seconds of the language model's passes."""
    parts: dict[str, float]
    resident: float
    peak: float
    size: float
    opened: float
    """Bytes of the pages, and of what opening them loads."""

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.parts.items())
        return (
            f"{self.what}, {self.tokens:,} tokens: {self.seconds:.1f} CPU s and {self.loading:.1f} "
            f"for loading\n    {self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}] times the "
            f"language model's own {self.model:.1f} s\n    {parts}\n    memory "
            f"{self.resident / MB:.0f} MB when all is loaded, {self.peak / MB:.0f} MB at most\n"
            f"    pages of {self.size / MB:.1f} MB, of which {self.opened / MB:.2f} MB are loaded "
            "at first"
        )


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The most memory that this process has while it is watched, from when `begin` is called."""

    def __enter__(self) -> "Peak":
        self.bytes, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.bytes = max(self.bytes, resident())

    def begin(self) -> None:
        """Forget what was before."""
        self.bytes = 0

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def measure(what: str, source: Path, out: Path, tokens: int) -> Cost:
    """Make pages, with a clock in the language model's passes."""
    clock, passes = Clock(), text.Prompts.activations

    def timed(self: text.Prompts, batch: torch.Tensor) -> torch.Tensor:
        begin = time.process_time()
        acts = passes(self, batch)
        clock.model += time.process_time() - begin
        return acts

    with Peak() as peak:
        stage = clock.stage

        def staged(text: str) -> None:
            if text.startswith("reading"):
                peak.begin()
            stage(text)

        clock.stage = staged  # type: ignore[method-assign]
        text.Prompts.activations = timed  # type: ignore[method-assign]
        try:
            begin = time.process_time()
            pages = build(Request([str(source)], out, tokens=tokens), clock)
            end = time.process_time()
        finally:
            text.Prompts.activations = passes  # type: ignore[method-assign]
    after = clock.stages["reading"]
    model, rest = np.array(clock.batches).T
    fixed = end - after - model.sum() - rest.sum()
    drawn = np.random.default_rng(0).integers(len(model), size=(9999, len(model)))
    ratios = 1 + (rest[drawn].sum(axis=1) + fixed) / model[drawn].sum(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    files = [file for file in pages.path.rglob("*") if file.is_file()]
    shards = {*(pages.path / "data").glob("*-*.js")}
    size, opened = (sum(f.stat().st_size for f in some) for some in (files, {*files} - shards))
    comparing, writing = clock.stages["comparing"], clock.stages["writing"]
    parts = {"reading": comparing - after - model.sum(), "comparing": writing - comparing,
             "writing": end - writing}  # fmt: skip
    return Cost(
        what, pages.index["read"], 1 + (rest.sum() + fixed) / model.sum(), low, high, end - after,
        after - begin, model.sum(), parts, clock.resident, peak.bytes, size, opened,
    )  # fmt: skip


def random_sae(folder: Path, smollm2: Path) -> Path:
    """An SAE for SmolLM2 whose decoder rows are random."""
    where = SAEMetadata(
        model_name=str(smollm2 / "model"),
        hook_name=HOOK,
        prepend_bos=True,
        context_size=CONTEXT,
        dataset_path=str(smollm2 / "text" / "train.jsonl"),
    )
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, metadata=where))
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
    sae.save_model(folder)
    return folder


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smollm2", type=Path, help="folder that benchmarks/smollm2.py has made")
    parser.add_argument("--tokens", type=int, help="default 60,000; 200,000 for SmolLM2")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.smollm2:
            source, tokens = random_sae(folder / "sae", args.smollm2), SMOLLM2_TOKENS
            what = f"d_sae {D_SAE:,} at layer 10 of SmolLM2-135M"
        else:
            source, tokens = folder / "sae", WORLD_TOKENS
            what = "d_sae 768 on the embedded world"
            command(["train", *TRAINED.split(), "--output_path", str(source)])
        cost = measure(what, source, folder / "pages", args.tokens or tokens)
    report("Feature pages", [cost], args.json)


if __name__ == "__main__":
    main()
