"""Cost of the exact co-activation penalty on every batch, as a ratio to SAELens' own step.

    python benchmarks/bench_pairs.py                    # both widths, a few minutes on a CPU
    python benchmarks/bench_pairs.py --shape 16384 --rounds 5 --json benchmarks/results.jsonl

An arm is what `coactivation-penalty` adds to a step: selecting the top 0.5% of all pairs, their sum
and its gradient. What that costs depends on which features fire together, so the activations are
synthetic and of a known L0: rates follow a power law, strengths are lognormal, and one feature in
20 is copied by another on 30% of its tokens. At initialisation they are the ReLU of a random map
of rank 256, and half of them fire.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from bench_step import DEVICE, training
from harness import PeakBytes, interleave, report
from torch import Tensor

from sae_plugins.mechanisms.pairs import co_activation

D_IN, TOKENS = 2304, 2048
WIDTHS = {"2304": 2304, "16384": 16384, "65536": 65536}
FRACTION = 0.005
MIB = 2**20


def sparse(width: int, l0: float, tokens: int = TOKENS) -> Tensor:
    """Activations [tokens, width] with `l0` features per token."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(function: Callable[..., Tensor], *shape: int) -> Tensor:
        return function(*shape, device=DEVICE, generator=generator)

    rates = 1 / torch.arange(1, width + 1, device=DEVICE)
    for _ in range(20):  # so that they sum to l0, though none exceeds 0.5
        rates = (rates * l0 / rates.sum()).clamp_max(0.5)
    rates = rates[torch.randperm(width, generator=generator, device=DEVICE)]
    acts = (draw(torch.rand, tokens, width) < rates) * draw(torch.randn, tokens, width).abs()
    acts *= torch.exp(draw(torch.randn, width))
    copies, copied = torch.randperm(width, generator=generator, device=DEVICE).split(width // 2)
    copies, copied = copies[: width // 20], copied[: width // 20]
    chosen = draw(torch.rand, tokens, len(copies)) < 0.3
    acts[:, copies] = torch.where(chosen, acts[:, copied], acts[:, copies])
    return acts


def initial(width: int) -> Tensor:
    """Activations [TOKENS, width] of which half are positive."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    left = torch.randn(TOKENS, 256, device=DEVICE, generator=generator)
    return (left @ torch.randn(256, width, device=DEVICE, generator=generator)).relu()


def penalty(acts: Tensor) -> Callable[[], None]:
    """The work of an arm."""
    width = acts.shape[1]
    k = int(FRACTION * width * (width - 1) / 2)

    def work() -> None:
        leaf = acts.detach().requires_grad_()
        co_activation(leaf, k).backward()

    return work


def main() -> None:
    """Measure every width."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds per width (default 5)")
    parser.add_argument(
        "--shape", choices=WIDTHS, action="append", help="d_sae; default 2304, 16384"
    )
    parser.add_argument("--l0", type=int, action="append", help="default 50, 300, initialisation")
    parser.add_argument("--only", choices=["time", "memory"], help="default both")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.shape or ["2304", "16384"]:
        width = WIDTHS[name]
        title = f"d_in {D_IN}, d_sae {width}, batch {TOKENS}"
        cases = {f"L0 {l0}": partial(sparse, width, l0) for l0 in args.l0 or (50, 300)}
        if not args.l0:
            cases["initialisation"] = partial(initial, width)
        if args.only != "memory":
            _, step = training((D_IN, width, TOKENS))
            arms = {case: penalty(make()) for case, make in cases.items()}
            results = interleave(step, arms, args.rounds)
            report(f"time of the penalty / that of SAELens' step ({title})", results, args.json)
        if args.only != "time":
            for case, make in cases.items():
                acts = make()
                work = penalty(acts)
                with PeakBytes() as counter:
                    work()
                mib = counter.peak / MIB, acts.nbytes / MIB
                print("  {}: peak {:.0f} MiB, beside activations of {:.0f}".format(case, *mib))


if __name__ == "__main__":
    main()
