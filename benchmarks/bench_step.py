"""Cost of a training step with plugins, as a ratio to SAELens' own step.

    python benchmarks/bench_step.py                     # hybrid-order, a few minutes on a CPU
    python benchmarks/bench_step.py --rounds 20 --json benchmarks/results.jsonl
    python benchmarks/bench_step.py --study methods --shape 2304
    python benchmarks/bench_step.py --study fast --shape 4096 --only time
    python benchmarks/bench_step.py --study fast --shape 4096 --peer sparsify dictionary_learning

Time is the process's CPU time on one thread, or GPU time where there is a GPU. One unit of work is
a whole accumulation window of four batches, so that arms with fewer optimizer steps get no more
than they earn; within it the arms take turns, batch by batch.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from harness import PeakBytes, interleave, report
from peers import PEERS, PeerMissing, steps_of_peer
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer

import sae_plugins
from sae_plugins.framework.architectures import HAVING_A_FAST_STEP
from sae_plugins.methods.hierarchical import Hierarchical

WINDOW = 4
L0 = 64
SHAPES = {
    "4096": (512, 4096, 2048),
    "2304": (2304, 2304, 2048),
    "4608": (576, 4608, 2048),
    "16384": (576, 16384, 1024),
    "large": (2304, 16384, 2048),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

ReorderOften = {"reorder": {"start": 0, "interval": 4, "adaptive": False}}
"""Far more often than any run would: the cost of reordering itself, every accumulation window."""


Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Attributes:
        context: makes what the trainer is built in.
        architecture: of the SAE.
        l0: features that fire per token, all along; None as they are drawn, half of them.
        autocast: SAELens' own, products in bfloat16.
    """

    context: Context = nullcontext
    architecture: str = "standard"
    l0: int | None = None
    autocast: bool = False


def hybrid_order(accumulate: int, **options: Any) -> AbstractContextManager[Any]:
    """Hybrid-order, with reordering on from the start: every 500 steps, and by its trigger."""
    return sae_plugins.plugins(
        "hybrid-order",
        options=options or {"reorder": {"start": 0}},
        training={"accumulate": accumulate},
        seed=0,
    )


def both_methods(fast_step: bool = False, **options: Any) -> AbstractContextManager[Any]:
    """All of hybrid-order and hierarchical, and no accumulation."""
    return sae_plugins.plugins(
        "hybrid-order",
        *Hierarchical.mechanisms,
        options={"reorder": {"start": 0}, **options},
        training={"accumulate": 1, "fast_step": fast_step, **Hierarchical.training},
        seed=0,
    )


AllOften = {
    **ReorderOften,
    "firing-window": {"window": WINDOW},
    "resample": {"per": "token", "threshold": 0.5},
    "merge": {"every": WINDOW},
}
"""Every window reorder, resample about half of the features, and merge the duplicates among them:
more of everything than in any run."""


def adaptive_threshold(**orthogonality: Any) -> AbstractContextManager[Any]:
    """Adaptive-threshold with all its mechanisms on from the start; importances cost nothing."""
    return sae_plugins.plugins(
        "adaptive-threshold",
        options={
            "activation-threshold": {"start": 0},
            "decoder-orthogonality": {"start": 0, **orthogonality},
            "importance": {"step": "before"},
            "reconstruction-warm-up": {"steps": 0},
        },
        seed=0,
    )


def fast(*names: str, **options: Any) -> Context:
    """The fast step, with plugins or without."""
    training = {"fast_step": True}
    return lambda: sae_plugins.plugins(*names, options=options, training=training, seed=0)


def fast_arms() -> dict[str, Arm]:
    """Each architecture in SAELens' step and in the fast one, with few features firing and many."""
    arms: dict[str, Arm] = {}
    for name in HAVING_A_FAST_STEP:
        few = Arm(fast(), name, L0)
        arms[f"{name}, SAELens"] = replace(few, context=nullcontext)
        arms[f"{name}, fast"] = few
        if "topk" not in name:
            arms[f"{name}, fast, half fire"] = Arm(fast(), name)
    for name in ("topk", "standard"):
        arms[f"{name}, SAELens, bf16"] = Arm(nullcontext, name, L0, autocast=True)
        arms[f"{name}, fast, bf16"] = Arm(fast(), name, L0, autocast=True)
    arms["topk, fast, reorder"] = Arm(fast("reorder", reorder={"start": 0}), "topk", L0)
    arms["both methods, fast"] = Arm(partial(both_methods, fast_step=True), l0=L0)
    return arms


STUDIES: dict[str, dict[str, Context]] = {
    "hybrid-order": {
        "no plugins": sae_plugins.plugins,
        "hybrid-order": lambda: hybrid_order(4),
        "hybrid-order, no accumulation": lambda: hybrid_order(1),
        "accumulation alone": lambda: sae_plugins.plugins(training={"accumulate": 4}),
        "reordering every window": lambda: hybrid_order(1, **ReorderOften),
    },
    "methods": {
        "no plugins": sae_plugins.plugins,
        "both methods": both_methods,
        "both, all events every window": lambda: both_methods(**AllOften),
        "adaptive-threshold": adaptive_threshold,
        "adaptive-threshold, every 4": lambda: adaptive_threshold(every=4),
        "adaptive-threshold, top 1/8": lambda: adaptive_threshold(top=1 / 8),
    },
}


def arms_of(study: str) -> dict[str, Arm]:
    """The arms of a study, by name."""
    if study == "fast":
        return fast_arms()
    return {name: Arm(context) for name, context in STUDIES[study].items()}


@dataclass(frozen=True)
class Memory:
    """Peak live bytes of a window of steps, state included, over SAELens' own."""

    arm: str
    ratio: float
    peak_mib: float
    operations_per_step: float

    def __str__(self) -> str:
        return (
            f"{self.arm:<37} {self.ratio:6.3f}  peak {self.peak_mib:.0f} MiB, "
            f"{self.operations_per_step:.0f} operations per step"
        )


def training(
    shape: tuple[int, int, int], arm: Arm = Arm(), lr: float = 1e-12
) -> tuple[SAETrainer[Any, Any], Callable[[], None]]:
    """The trainer of an arm, and a function that trains it on the next batch.

    An arm with a known L0 has the learning rate `lr`: at 1e-12 as many features fire in the last
    step as in the first.
    """
    d_in, d_sae, batch_size = shape
    batches = random_batches(d_in, batch_size)
    provider = cycle(batches)
    torch.manual_seed(0)
    with arm.context():
        sae = drawn(d_in, d_sae, arm.architecture, arm.l0 or min(L0, d_sae))
        config = SAETrainerConfig(
            total_training_samples=batch_size * 10**6,
            train_batch_size_samples=batch_size,
            **({"lr_end": 3e-5} if arm.l0 is None else {"lr": lr, "lr_end": lr}),
            device=DEVICE,
            autocast=arm.autocast,
        )
        if arm.l0 is not None:
            fire(sae, batches[0], arm.l0)
        trainer: SAETrainer[Any, Any] = SAETrainer(cfg=config, sae=sae, data_provider=provider)

    def step() -> None:
        trainer.step(next(provider))
        trainer.n_training_steps += 1

    return trainer, step


def random_batches(d_in: int, batch_size: int) -> list[torch.Tensor]:
    """What every arm trains on, again and again."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    return [
        torch.randn(batch_size, d_in, device=DEVICE, generator=generator) for _ in range(WINDOW)
    ]


def drawn(d_in: int, d_sae: int, architecture: str, k: int) -> Any:
    """An SAE in training, with random weights; k features fire per token, where it has a k."""
    sae_class, config_class = get_sae_training_class(architecture)
    fields: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": DEVICE}
    if "topk" in architecture:
        fields["k"] = k
    if architecture == "matryoshka_batchtopk":
        fields["matryoshka_widths"] = [d_sae // 16, d_sae // 4, d_sae]
    return sae_class(config_class(**fields))


@torch.no_grad()
def fire(sae: Any, batch: torch.Tensor, l0: int) -> None:
    """Have about so many features fire per token, by the biases of what they fire by."""
    if "topk" in sae.cfg.architecture():
        return
    bias = sae.b_gate if sae.cfg.architecture() == "gated" else sae.b_enc
    some = batch[:256]
    cut = (some @ sae.W_enc).flatten().topk(l0 * len(some)).values.min()
    bias.fill_(getattr(sae.cfg, "jumprelu_init_threshold", 0.0) - cut)


def peer_steps(peer: str, shape: tuple[int, int, int]) -> dict[str, Callable[[], None]]:
    """The steps of another library at a shape; none, and a sentence, where it cannot be had."""
    d_in, d_sae, batch_size = shape
    try:
        return steps_of_peer(peer, d_sae, L0, random_batches(d_in, batch_size))
    except PeerMissing as reason:
        print(reason)
        return {}


def peak(shape: tuple[int, int, int], arm: Arm = Arm(), window: int = WINDOW) -> tuple[int, float]:
    """Peak bytes of training state and steps, and operations per step, after a first window."""
    with PeakBytes() as counter:
        trainer, step = training(shape, arm)
        for _ in range(window):
            step()
        counter.operations = 0
        for _ in range(window):
            step()
    del trainer
    return counter.peak, counter.operations / window


def main() -> None:
    """Measure every shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds per shape (default 10)")
    parser.add_argument(
        "--study", choices=[*STUDIES, "fast"], default="hybrid-order", help="which arms"
    )
    parser.add_argument("--arm", action="append", help="of the study; default all")
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=[], help="other libraries")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default 2304, 16384")
    parser.add_argument("--only", choices=["time", "memory"], help="default both")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = arms_of(args.study)
    study = {name: study[name] for name in args.arm or study}
    for name in args.shape or ("2304", "16384"):
        shape = SHAPES[name]
        title = "d_in {}, d_sae {}, batch {}".format(*shape)
        if args.only != "memory":
            baseline = training(shape)[1]
            arms = {name: training(shape, arm)[1] for name, arm in study.items()}
            for peer in args.peer:
                arms |= peer_steps(peer, shape)
            results = interleave(baseline, arms, args.rounds, turns=WINDOW)
            report(f"time / SAELens' ({title})", results, args.json)
        if args.only != "time":
            stock, operations = peak(shape)
            memory = [Memory("SAELens", 1.0, stock / 2**20, operations)]
            cases = {name: (shape, arm) for name, arm in study.items()}
            if args.study == "hybrid-order" and not args.arm:
                quarter = (*shape[:2], shape[2] // WINDOW)
                cases["hybrid-order, quarter batches"] = (quarter, study["hybrid-order"])
                often = partial(hybrid_order, WINDOW, **ReorderOften)
                cases["hybrid-order, reordering every window"] = (shape, Arm(often))
            for name, (arm_shape, arm) in cases.items():
                bytes_, operations = peak(arm_shape, arm)
                memory.append(Memory(name, bytes_ / stock, bytes_ / 2**20, operations))
            report(f"peak memory / SAELens' ({title})", memory, args.json)


if __name__ == "__main__":
    main()
