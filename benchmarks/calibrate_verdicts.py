"""Are the verdicts of a study right? Studies without an effect, and with effects of known size.

    python benchmarks/calibrate_verdicts.py               # 25 to 40 minutes of one CPU core
    python benchmarks/calibrate_verdicts.py --processes 8

Two arms that are the same method (plain L1, its sparsities below) are trained with SAELens on a
small synthetic model, on the same batches, from independent initial weights. So whatever they
differ by is noise of training: real scores with whatever distribution they have, not draws from a
normal. Disjoint seeds make independent studies, and `sae_plugins.study.statistics.compare` judges
each as it judges every study, all its metrics as one family.

- A/A: the studies as they are. Any verdict but "not distinguishable" is wrong.
- Planted effects: one metric of one arm is raised by 1, 2 or 4 standard deviations of the paired
  differences, taken over all seeds. The share of "better" should be the power that the noncentral
  t distribution states at Holm's strictest level, alpha / metrics, or more: Holm is less strict
  where another metric was rejected first.

Every seed's scores are kept in the pool, a file to which a run that was stopped adds the rest. It
exits with 1 if more than 15 of 200 A/A studies have a verdict, or if a stated power is above the
interval of the share that was found (exact binomial, 95% for all rows of the table together).
"""

import argparse
import contextlib
import gc
import io
import json
import math
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import stdev
from typing import Any

import scipy.stats

from sae_plugins.base.children import safe_path
from sae_plugins.study.statistics import Comparison, Point, compare, differences

SEEDS = 1000
SEEDS_PER_STUDY = (3, 5, 10)
BOUNDS = {5: 15}
"""By seeds per study: how many studies may have a verdict where there is no effect."""
ALPHA = 0.05
EFFECTS = (1, 2, 4)
METRICS = ("mcc", "f1", "explained_variance")
L1_COEFFICIENTS = (0.15, 0.25, 0.4)
D_SAE, STEPS, BATCH, LR, EVAL_SAMPLES = 32, 100, 128, 2e-2, 4096

Scores = dict[str, float]
Arm = list[Scores]
"""The scores of one seed's SAEs, by sparsity."""
Seed = tuple[int, Arm, Arm]
"""A seed with the scores of both arms."""


def synthetic_model() -> Any:
    """24 features in 16 dimensions, about 3 of which are active."""
    from sae_lens.synthetic import (
        LinearFiringProbabilityConfig,
        OrthogonalizationConfig,
        SyntheticModel,
        SyntheticModelConfig,
    )

    config = SyntheticModelConfig(
        num_features=24,
        hidden_dim=16,
        firing_probability=LinearFiringProbabilityConfig(max_prob=0.2, min_prob=0.05),
        orthogonalization=OrthogonalizationConfig(num_steps=100),
        mean_firing_magnitudes=1.0,
        std_firing_magnitudes=0.3,
        bias=False,
        seed=0,
    )
    return SyntheticModel(config, device="cpu")


def start_worker() -> None:
    """Called once in each process."""
    import torch

    global MODEL
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):  # SAELens draws a bar, whatever TQDM_DISABLE is
        MODEL = synthetic_model()


def both_arms(seed: int) -> Seed:
    """Train and score the SAEs of one seed."""
    return (seed, *([score(seed, arm, l1) for l1 in L1_COEFFICIENTS] for arm in (0, 1)))


def score(seed: int, arm: int, l1_coefficient: float) -> Scores:
    """Train one SAE. The arm and the seed choose its initial weights, the seed alone its data."""
    import torch
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.synthetic import eval_sae_on_synthetic_data, train_toy_sae

    torch.manual_seed(4 * seed + arm)
    config = StandardTrainingSAEConfig(
        d_in=MODEL.cfg.hidden_dim, d_sae=D_SAE, l1_coefficient=l1_coefficient
    )
    sae, data = StandardTrainingSAE(config), (MODEL.feature_dict, MODEL.activation_generator)
    torch.manual_seed(4 * seed + 2)
    train_toy_sae(sae, *data, training_samples=STEPS * BATCH, batch_size=BATCH, lr=LR)
    torch.manual_seed(4 * seed + 3)
    found = eval_sae_on_synthetic_data(sae, *data, num_samples=EVAL_SAMPLES)
    return {
        "l0": found.sae_l0,
        "mcc": found.mcc,
        "f1": found.classification.f1_score,
        "explained_variance": found.explained_variance,
    }


def pool(file: Path, processes: int) -> list[Seed]:
    """The scores of all seeds; those that the file lacks are computed."""
    settings = [*L1_COEFFICIENTS, D_SAE, STEPS, BATCH, LR, EVAL_SAMPLES, version("sae-lens")]
    done: dict[int, Seed] = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            kept, seed, *arms = json.loads(line)
        except ValueError:  # a run was stopped while it wrote this line
            continue
        if kept == settings:
            done[seed] = (seed, arms[0], arms[1])
    missing = [seed for seed in range(SEEDS) if seed not in done]
    file.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with (
        file.open("a", encoding="utf-8") as out,
        ProcessPoolExecutor(processes, spawn, start_worker) as workers,
    ):
        with safe_path(TQDM_DISABLE="1"):  # SAELens draws a bar for every SAE
            found = workers.map(both_arms, missing)
        for seed, *arms in found:
            out.write("\n" + json.dumps([settings, seed, *arms]))
            out.flush()
            done[seed] = (seed, arms[0], arms[1])
            print(f"\r{len(done)} of {SEEDS} seeds", end="", file=sys.stderr)
    print(file=sys.stderr)
    return [done[seed] for seed in range(SEEDS)]


def points(study: Sequence[Seed], arm: int, metric: str) -> list[Point]:
    """The scores of one arm."""
    return [
        Point(seed, scores["l0"], scores[metric]) for seed, *arms in study for scores in arms[arm]
    ]


def judge(
    study: Sequence[Seed], planted: str | None = None, effect: float = 0.0
) -> dict[str, Comparison]:
    """The verdicts on a study's metrics, one of which an effect was added to."""
    contrasts = {}
    for metric in METRICS:
        shift = effect if metric == planted else 0.0
        arm = [replace(point, value=point.value + shift) for point in points(study, 1, metric)]
        contrasts[metric] = (arm, points(study, 0, metric), "higher")
    return compare(contrasts, ALPHA)  # type: ignore[arg-type]


def power(effect: float, seeds: int) -> float:
    """Chance that a two-sided paired t test at Holm's strictest level says "better"."""
    critical = scipy.stats.t.isf(ALPHA / len(METRICS) / 2, seeds - 1)
    return float(scipy.stats.nct.sf(critical, seeds - 1, effect * math.sqrt(seeds)))


def interval(found: int, studies: int) -> tuple[float, float]:
    """Of a share; the intervals of all planted effects hold together with 95%."""
    rows = len(SEEDS_PER_STUDY) * len(METRICS) * len(EFFECTS)
    test = scipy.stats.binomtest(found, studies)
    exact = test.proportion_ci(1 - 0.05 / rows, method="exact")
    return (exact.low, exact.high)


def main() -> None:
    """Train what is missing, judge, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, default=Path("build/calibration.jsonl"))
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    args = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage in every correction: thousands of times here
    seeds = pool(args.pool, args.processes)
    gaps = {
        metric: differences(points(seeds, 1, metric), points(seeds, 0, metric)).by_seed.values()
        for metric in METRICS
    }
    sd = {metric: stdev(gaps[metric]) for metric in METRICS}

    print("\n| metric | SD of paired differences | skewness | excess kurtosis |")
    print("| --- | --- | --- | --- |")
    for metric in METRICS:
        values = list(gaps[metric])
        shape = (scipy.stats.skew(values), scipy.stats.kurtosis(values))
        print(f"| {metric} | {sd[metric]:.4f} | {shape[0]:.2f} | {shape[1]:.2f} |")

    levels = (0.05, 0.01, 0.001)
    shares = " | ".join(f"p < {level}" for level in levels)
    print(f"\n| seeds | A/A studies | {shares} | with a verdict | bound |")
    print("| --- " * (4 + len(levels)) + "|")
    failed, rows = False, []
    for size in SEEDS_PER_STUDY:
        studies = [seeds[i : i + size] for i in range(0, SEEDS - size + 1, size)]
        judged = [judge(study).values() for study in studies]
        wrong = sum(any(c.verdict != "not distinguishable" for c in study) for study in judged)
        p = [math.nan if c.p is None else c.p for study in judged for c in study]
        shares = " | ".join(f"{sum(x < level for x in p) / len(p):.4f}" for level in levels)
        failed |= wrong > BOUNDS.get(size, math.inf)
        print(f"| {size} | {len(studies)} | {shares} | {wrong} | {BOUNDS.get(size, '')} |")
        for metric in METRICS:
            for effect in EFFECTS:
                shift = effect * sd[metric]
                verdicts = [judge(study, metric, shift)[metric].verdict for study in studies]
                found, stated = verdicts.count("better"), power(effect, size)
                low, high = interval(found, len(studies))
                failed |= stated > high
                rows.append(
                    f"| {size} | {metric} | {effect} | {stated:.3f} | {found / len(studies):.3f} "
                    f"| [{low:.3f}, {high:.3f}] |"
                )

    print("\n| seeds | metric | effect (SD) | stated power | found | interval |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    sys.exit("\na bound is not met" if failed else 0)


if __name__ == "__main__":
    main()
