"""The parts of `gpu.py`: cases by name, each a function that gives a row of results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_pairs import penalty, sparse
from bench_step import DEVICE, Arm, Context, both_methods, fast, training
from harness import Ratio, interleave, measured_peak

import sae_plugins
from sae_plugins.base.saelens import ADAM_MOMENTS
from sae_plugins.framework.architectures import HAVING_A_FAST_STEP
from sae_plugins.framework.fast.choice import forced
from sae_plugins.framework.fast.pairs import Sparse
from sae_plugins.framework.fast.precision import matmul_precision
from sae_plugins.framework.fast.topk import batch_top_k, top_k

Row = dict[str, Any]
Case = Callable[[], Row]
PRECISIONS = ("bf16", "tf32", "fp32")
TESTS = Path(__file__).parents[1] / "tests" / "runs" / "test_gpu.py"
SELECTED = (
    "test_training_is_bitwise_that_of_sae_lens",
    "test_the_fast_step_is_that_of_sae_lens_and_repeats",
    "test_a_reordering_changes_no_loss",
    "test_hybrid_order_trains",
)
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Of the features, that fire: from where a list of pairs must win to where it must lose."""
METHODS: dict[str, dict[str, Any]] = {
    "hybrid-order": {"options": {"reorder": {"start": 0}}, "training": {"accumulate": 1}},
    "hierarchical": {},
    "adaptive-threshold": {
        "options": {
            "activation-threshold": {"start": 0},
            "decoder-orthogonality": {"start": 0},
            "reconstruction-warm-up": {"steps": 0},
        }
    },
    "adaptive-orthogonality": {},
}
"""The papers' methods, with all that they do from the first step on."""


@dataclass(frozen=True)
class Sizes:
    """How large what is measured is.

    Attributes:
        d_in: of the SAEs.
        widths: their d_sae, for steps.
        pairs: d_sae for coactivation.
        batch: tokens.
        l0: features that fire per token.
        rounds: of each comparison.
        seconds: after which a comparison begins no further round.
    """

    d_in: int = 2304
    widths: tuple[int, ...] = (16384, 65536, 131072)
    pairs: int = 65536
    batch: int = 4096
    l0: int = 64
    rounds: int = 7
    seconds: float = 3.0

    def shape(self, width: int) -> tuple[int, int, int]:
        """As `bench_step.training` takes it."""
        return self.d_in, width, self.batch


TINY = Sizes(48, (256, 512), 512, 64, 8, rounds=2, seconds=0.1)


def parts(tiny: bool) -> dict[str, tuple[float, dict[str, Case]]]:
    """All parts in order, each with its share of the time and its cases."""
    sizes = TINY if tiny else Sizes()
    narrow = sizes.shape(sizes.widths[0])
    return {
        "identity": (50, {name: partial(identity, name) for name in SELECTED}),
        "repeat": (15, {name: partial(repeats, sizes, *arm) for name, arm in repeated().items()}),
        "operations": (
            10,
            {f"d_sae {width}": partial(operations, sizes, width) for width in sizes.widths[:2]},
        ),
        "crossover": (
            35,
            {
                f"{precision}, {share:.1%} fire": partial(crossover, sizes, precision, share)
                for precision in PRECISIONS
                for share in SHARES
            },
        ),
        "methods": (30, {name: partial(method, sizes, narrow, name) for name in METHODS}),
        "coactivation": (10, {f"d_sae {sizes.pairs}": partial(coactivation, sizes)}),
        "steps": (
            150,
            {
                f"{name}, d_sae {width}, {precision}": partial(step, sizes, name, width, precision)
                for width in sizes.widths
                for precision in PRECISIONS
                for name in HAVING_A_FAST_STEP
            },
        ),
    }


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Products of float32 matrices in float32 or TF32; bfloat16 is an arm's `autocast`."""
    with matmul_precision("high" if precision == "tf32" else "highest"):
        yield


def identity(test: str) -> Row:
    """Run one of our tests on the device."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}

    class Counting:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1

    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    status = pytest.main([*options, f"{TESTS}::{test}"], plugins=[Counting()])
    if status != 0:
        raise AssertionError(f"pytest ends with {int(status)}: {counts}")
    return counts


def repeated() -> dict[str, tuple[str, Context]]:
    """What is trained twice: an architecture, and what its trainer is built in."""
    return {
        "SAELens": ("standard", nullcontext),
        "no plugins": ("standard", sae_plugins.plugins),
        "both methods": ("standard", both_methods),
        "fast step, standard": ("standard", fast()),
        "fast step, topk": ("topk", fast()),
        "fast step, matryoshka": ("matryoshka_batchtopk", fast()),
        "fast step, both methods": ("standard", partial(both_methods, fast_step=True)),
    }


def repeats(sizes: Sizes, architecture: str, context: Context) -> Row:
    """Whether two runs from one seed end equal, bit for bit, and as a run of SAELens' step."""

    def ended(context: Context) -> list[torch.Tensor]:
        arm = Arm(context, architecture, sizes.l0)
        trainer, step = training(sizes.shape(sizes.widths[0]), arm, lr=1e-4)
        for _ in range(8):
            step()
        states = trainer.optimizer.state.values()
        moments = [state[name] for state in states for name in ADAM_MOMENTS]
        return [*(p.detach() for p in trainer.sae.parameters()), *moments]

    one, other, stock = ended(context), ended(context), ended(nullcontext)
    return {"repeats": _equal(one, other), "as_sae_lens": _equal(one, stock)}


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def step(sizes: Sizes, architecture: str, width: int, precision: str) -> Row:
    """The fast step against SAELens' of one architecture."""
    shape, trainers = sizes.shape(width), []
    with multiplying(precision):
        steps, peaks = [], []
        for context in (nullcontext, fast()):
            arm = Arm(context, architecture, sizes.l0, autocast=precision == "bf16")
            with measured_peak() as memory:
                trainer, train = training(shape, arm)
                train()
                train()
            peaks.append(memory.peak / 2**20)
            steps.append(train)
            trainers.append(trainer)
        fired = float(trainers[1].act_freq_scores.sum()) / (2 * sizes.batch)
        stock, ours = steps
        (ratio,) = interleave(stock, {"fast": ours}, sizes.rounds, budget=sizes.seconds)
    return {
        **_timed(sizes, ratio),
        "architecture": architecture,
        "d_sae": width,
        "precision": precision,
        "l0": fired,
        "sparse": trainers[1].state_dict()["fast"]["sparse"],
        "peak_mib": {"SAELens": peaks[0], "fast": peaks[1]},
    }


def _timed(sizes: Sizes, ratio: Ratio) -> Row:
    return {
        "ratio": [ratio.ratio, ratio.low, ratio.high],
        "rounds": ratio.rounds,
        "ms": {"baseline": ratio.baseline * 1e3, "arm": ratio.seconds * 1e3},
        "tokens_per_second": {
            "baseline": sizes.batch / ratio.baseline,
            "arm": sizes.batch / ratio.seconds,
        },
    }


def crossover(sizes: Sizes, precision: str, share: float) -> Row:
    """A standard SAE's fast step on the pairs that fire, against that on all pairs."""
    width = sizes.widths[0]
    arm = Arm(fast(), "standard", max(1, round(share * width)), autocast=precision == "bf16")

    def always(sparse: bool) -> Callable[[], None]:
        _, train = training(sizes.shape(width), arm)

        def work() -> None:
            with forced(sparse):
                train()

        return work

    with multiplying(precision):
        arms = {"sparse": always(True)}
        (ratio,) = interleave(always(False), arms, sizes.rounds, budget=sizes.seconds)
    return {**_timed(sizes, ratio), "precision": precision, "share": share}


def method(sizes: Sizes, shape: tuple[int, int, int], name: str) -> Row:
    """A method on SAELens' step and on the fast one, against SAELens' without plugins."""
    given = METHODS[name]

    def context(fast_step: bool) -> Any:
        settings = {**given.get("training", {}), "fast_step": fast_step}
        return sae_plugins.plugins(name, options=given.get("options"), training=settings, seed=0)

    with multiplying("tf32"):
        baseline = training(shape, Arm(l0=sizes.l0))[1]
        kinds = {"on SAELens' step": False, "on the fast step": True}
        arms = {
            label: training(shape, Arm(partial(context, fast_step), l0=sizes.l0))[1]
            for label, fast_step in kinds.items()
        }
        ratios = interleave(baseline, arms, sizes.rounds, turns=4, budget=sizes.seconds)
    return {"ratios": {r.arm: [r.ratio, r.low, r.high] for r in ratios}}


def coactivation(sizes: Sizes) -> Row:
    """What the exact top pairs add to a step of SAELens', in time and in memory."""
    acts = sparse(sizes.pairs, min(200, sizes.pairs // 8), sizes.batch)
    work = penalty(acts)
    with measured_peak() as memory:
        work()
    with multiplying("tf32"):
        baseline = training(sizes.shape(sizes.pairs), Arm(l0=sizes.l0))[1]
        (ratio,) = interleave(baseline, {"pairs": work}, sizes.rounds, budget=sizes.seconds)
    mib = {"peak": memory.peak / 2**20, "activations": acts.nbytes / 2**20}
    return {**_timed(sizes, ratio), "mib": mib}


def operations(sizes: Sizes, width: int) -> Row:
    """Milliseconds of what the steps are made of."""
    d_in, batch, k = sizes.d_in, sizes.batch, sizes.l0
    x, W = torch.randn(batch, d_in, device=DEVICE), torch.randn(width, d_in, device=DEVICE)
    pre = x @ W.t()
    chosen = top_k(pre, k)
    pairs, values = Sparse.of_rows(chosen, width), pre.gather(1, chosen).flatten()
    work: dict[str, Callable[[], Any]] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        xs, Ws, vs = x.to(dtype), W.to(dtype), values.to(dtype)
        work[f"product, {precision}"] = lambda xs=xs, Ws=Ws: xs @ Ws.t()
        work[f"decode, {precision}"] = lambda Ws=Ws, vs=vs: pairs.times(vs, Ws)
        work[f"weight gradient, {precision}"] = lambda xs=xs, vs=vs: pairs.outer(vs, xs)
    work["torch's topk"] = lambda: pre.topk(k, sorted=False)
    work["top_k"] = lambda: top_k(pre, k)
    work["batch_top_k"] = lambda: batch_top_k(pre, k * batch)
    parameters = [W, W.clone()]
    for name, kind in (("torch's Adam", {}), ("fused Adam", {"fused": True})):
        work[name] = _adam(parameters, **kind)
    half = {name: one for name, one in work.items() if name != "product, fp32"}
    found = interleave(work["product, fp32"], half, sizes.rounds, budget=sizes.seconds)
    with multiplying("tf32"):
        (tf32,) = interleave(work["product, fp32"], {"product, tf32": work["product, fp32"]}, 3)
    times = {r.arm: r.seconds * 1e3 for r in (*found, tf32)}
    return {"ms": {"product, fp32": found[0].baseline * 1e3, **times}}


def _adam(weights: list[torch.Tensor], **kind: Any) -> Callable[[], Any]:
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.Adam(parameters, lr=1e-12, **kind).step
