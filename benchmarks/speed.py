"""The fast step beside SAELens', other libraries' steps, and the floor, for docs/speed.md.

    OMP_NUM_THREADS=1 python benchmarks/speed.py      # ten minutes of an idle core, 8 GB of memory

All arms of a shape take turns with SAELens' standard step, and only ratios within a round count.
`docs/generate.py` makes the tables and the chart out of what this writes.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from bench_step import L0, SHAPES, Arm, fast_arms, peak, random_batches, training
from harness import interleave, machine
from peers import PEERS, PeerMissing, steps_of_peer

RESULTS = Path(__file__).parent / "results" / "speed.json"
ALL = ("4096", "16384", "2304")
Shape = tuple[int, int, int]
Steps = dict[str, Callable[[], None]]


def floor(shape: Shape) -> Steps:
    """Nothing but products of matrices: all that a step needs where all pairs count, or where few.

    A dense step multiplies by the encoder, by the decoder, and back by the decoder, and makes two
    gradients of weights. A sparse one only multiplies by the encoder.
    """
    d_in, d_sae, _ = shape
    batches = cycle(random_batches(d_in, shape[2]))
    W_enc, W_dec = torch.randn(d_in, d_sae), torch.randn(d_sae, d_in)

    def one() -> None:
        next(batches) @ W_enc

    def five() -> None:
        x = next(batches)
        acts = x @ W_enc
        error = acts @ W_dec
        acts.t() @ error
        x.t() @ (error @ W_dec.t())

    return {"floor, all pairs": five, "floor, few pairs": one}


def measured(name: str, rounds: int, peers: list[str], missing: list[str]) -> dict[str, Any]:
    """The rows of a shape. SAELens' other steps and the peers are measured at the first one."""
    shape, arms = SHAPES[name], fast_arms()
    stock = arms.pop("standard, SAELens")
    chosen = arms if name == "4096" else {a: arm for a, arm in arms.items() if "SAELens" not in a}
    steps = {arm: training(shape, chosen[arm])[1] for arm in chosen} | floor(shape)
    for peer in peers if name == "4096" else ():
        try:
            batches = random_batches(shape[0], shape[2])
            steps |= steps_of_peer(peer, shape[1], L0, batches)
        except PeerMissing as reason:
            missing.append(str(reason))
    ratios = interleave(training(shape, stock)[1], steps, rounds)
    del steps
    return {
        "shape": "/".join(map(str, shape)),
        "seconds": ratios[0].baseline,
        "time": [{k: v for k, v in asdict(r).items() if k != "baseline"} for r in ratios],
        "memory": memory(shape, {"standard, SAELens": stock, **arms}),
    }


def memory(shape: Shape, arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """Peaks of live bytes, and what they are over those of SAELens' step of the same kind."""
    rows = []
    for name, arm in arms.items():
        if "SAELens" in name or name == "both methods, fast":
            continue
        kind = replace(arms[f"{arm.architecture}, SAELens"], l0=arm.l0, autocast=arm.autocast)
        ours, theirs = (peak(shape, each, window=1)[0] / 2**20 for each in (arm, kind))
        rows.append({"arm": name, "ratio": ours / theirs, "mib": ours, "sae_lens_mib": theirs})
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="per shape (default 8)")
    parser.add_argument("--shape", nargs="+", choices=ALL, default=ALL, help="default all three")
    parser.add_argument("--peer", nargs="*", choices=PEERS, default=[*PEERS], help="default all")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    missing: list[str] = []
    shape = partial(measured, rounds=args.rounds, peers=args.peer, missing=missing)
    found = {"machine": machine(), "l0": L0, "rounds": args.rounds, "peers": PEERS, "shapes": []}
    for name in args.shape:
        found["shapes"].append(shape(name))
        for row in found["shapes"][-1]["time"]:
            print("{arm:<37} {ratio:6.3f}  [{low:.3f}, {high:.3f}]".format(**row), flush=True)
    found["missing"] = missing
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"{args.output}: python docs/generate.py makes tables and a chart of it")


if __name__ == "__main__":
    main()
