"""Are the verdicts of a study right? Studies without an effect, and with effects of known size.

    python benchmarks/calibrate_verdicts.py               # 25 to 45 minutes of one CPU core
    python benchmarks/calibrate_verdicts.py --processes 8

Two arms that are the same method (plain L1, its sparsities below) are trained with SAELens on a
small synthetic model, on the same batches, from independent initial weights. So whatever they
differ by is noise of training: real scores with whatever distribution they have, not draws from a
normal. Disjoint seeds make independent studies, and `sae_plugins.study.statistics.compare` judges
each as it judges every study, all its metrics as one family.

- A/A: the studies as they are. Any "better" or "worse" is wrong; with the margins that studies have
  by default, the other verdicts are counted, too.
- Planted effects: one metric of one arm is raised by 1, 2 or 4 standard deviations of the paired
  differences, taken over all seeds. The share of "better" should be the power that the noncentral
  t distribution states at Holm's strictest level, alpha / metrics, or more: Holm is less strict
  where another metric was rejected first.
- Planted equivalence: one metric has a margin of 2 or 4 standard deviations. The share of
  "equivalent" should be the power that is stated for two one-sided tests at Holm's strictest level.
  The same with a true difference as large as the margin of 4: the share should be that level.

Every seed's scores are kept in the pool, a file to which a run that was stopped adds the rest. It
exits with 1 if more A/A studies have a verdict than chance has in 96% of calibrations, or if a
stated power is above the interval of the share that was found (exact binomial, 95% for all rows of
a table together); that of equivalence may not lie below it either.
"""

import argparse
import contextlib
import gc
import io
import itertools
import json
import math
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import stdev
from typing import Any

import scipy.stats

from sae_plugins.base.children import safe_path
from sae_plugins.study.power import ALPHA, equivalence_power
from sae_plugins.study.statistics import Comparison, Point, Question, compare, differences

SEEDS_PER_STUDY = (2, 3, 5, 10)
EFFECTS, MARGINS = (1, 2, 4), (2, 4)
"""In standard deviations of the paired differences."""
METRICS = {"mcc": 0.02, "f1": 0.02, "explained_variance": 0.01}
"""With the margins that studies have by default."""
LEVEL = ALPHA / len(METRICS)
"""Holm's strictest."""
WRONG = ("better", "worse")
"""The verdicts that are wrong where there is no effect."""
KINDS = ("equivalent", "not distinguishable", "underpowered")
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


def pool(file: Path, seeds: int, processes: int) -> list[Seed]:
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
    missing = [seed for seed in range(seeds) if seed not in done]
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
            print(f"\r{len(done)} of {seeds} seeds", end="", file=sys.stderr)
    print(file=sys.stderr)
    return [done[seed] for seed in range(seeds)]


def points(study: Sequence[Seed], arm: int, metric: str) -> list[Point]:
    """The scores of one arm."""
    return [
        Point(seed, scores["l0"], scores[metric]) for seed, *arms in study for scores in arms[arm]
    ]


def judge(
    study: Sequence[Seed], shift: Mapping[str, float], margins: Mapping[str, float]
) -> dict[str, Comparison]:
    """The verdicts on a study's metrics, to one arm of which effects were added."""
    questions = {}
    for metric, margin in margins.items():
        by = shift.get(metric, 0.0)
        arm = [replace(point, value=point.value + by) for point in points(study, 1, metric)]
        questions[metric] = Question(arm, points(study, 0, metric), "higher", margin)
    return compare(questions)


def power(effect: float, seeds: int) -> float:
    """Chance that a two-sided paired t test at Holm's strictest level says "better"."""
    critical = scipy.stats.t.isf(LEVEL / 2, seeds - 1)
    return float(scipy.stats.nct.sf(critical, seeds - 1, effect * math.sqrt(seeds)))


def interval(found: int, studies: int) -> tuple[float, float]:
    """Of a share; the intervals of a table of planted effects hold together with 95%."""
    rows = len(SEEDS_PER_STUDY) * len(METRICS) * len(EFFECTS)
    test = scipy.stats.binomtest(found, studies)
    exact = test.proportion_ci(1 - 0.05 / rows, method="exact")
    return (exact.low, exact.high)


def table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in Markdown."""
    for row in ("", heads, ["---"] * len(heads), *rows):
        print("| " + " | ".join(map(str, row)) + " |" if row else "")


class Calibration:
    """Studies of disjoint seeds, and what of their verdicts was not as it should be."""

    def __init__(self, seeds: Sequence[Seed]) -> None:
        self.studies = {
            size: [seeds[i : i + size] for i in range(0, len(seeds) - size + 1, size)]
            for size in SEEDS_PER_STUDY
        }
        self.gaps = {
            metric: list(
                differences(points(seeds, 1, metric), points(seeds, 0, metric)).by_seed.values()
            )
            for metric in METRICS
        }
        self.sd = {metric: stdev(gaps) for metric, gaps in self.gaps.items()}
        self.judged = {
            size: [judge(study, {}, METRICS) for study in studies]
            for size, studies in self.studies.items()
        }
        """Without an effect, with the default margins."""
        self.failed = False

    def noise(self) -> Iterator[Sequence[object]]:
        """How the paired differences are distributed."""
        for metric, values in self.gaps.items():
            shape = (scipy.stats.skew(values), scipy.stats.kurtosis(values))
            yield (metric, f"{self.sd[metric]:.4f}", *(f"{number:.2f}" for number in shape))

    def no_effect(self) -> Iterator[Sequence[object]]:
        """How often there is a verdict without an effect."""
        for size, studies in self.judged.items():
            wrong = sum(any(c.verdict in WRONG for c in study.values()) for study in studies)
            bound = int(scipy.stats.binom.ppf(0.96, len(studies), ALPHA))
            self.failed |= wrong > bound
            p = [math.nan if c.p is None else c.p for study in studies for c in study.values()]
            shares = (f"{sum(x < level for x in p) / len(p):.4f}" for level in (0.05, 0.01, 0.001))
            yield (size, len(studies), *shares, wrong, bound)

    def default_margins(self) -> Iterator[Sequence[object]]:
        """The verdicts of studies with the default margins."""
        for size, metric in itertools.product(SEEDS_PER_STUDY, METRICS):
            verdicts = [study[metric].verdict for study in self.judged[size]]
            wrong = sum(verdict in WRONG for verdict in verdicts)
            yield (size, metric, len(verdicts), wrong, *map(verdicts.count, KINDS))

    def effects(self) -> Iterator[Sequence[object]]:
        """How often effects of known size are found."""
        for size, metric, effect in itertools.product(SEEDS_PER_STUDY, METRICS, EFFECTS):
            shift = {metric: effect * self.sd[metric]}
            found = self._count(size, metric, "better", shift, METRICS)
            yield self._row(size, metric, effect, power(effect, size), found)

    def equivalence(self, margins: Sequence[int], true: float) -> Iterator[Sequence[object]]:
        """How often equality is shown, where the true difference is a share of the margin."""
        for size, metric, margin in itertools.product(SEEDS_PER_STUDY, METRICS, margins):
            # the others' margins are too small to be within: the level stays Holm's strictest
            in_all = {m: (margin if m == metric else 1e-3) * self.sd[m] for m in METRICS}
            shift = {metric: true * in_all[metric]}
            found = self._count(size, metric, "equivalent", shift, in_all)
            stated = equivalence_power(margin, size, LEVEL, true * margin)
            yield self._row(size, metric, margin, stated, found, exact=True)

    def _count(
        self, size: int, metric: str, what: str, shift: Mapping[str, float],
        margins: Mapping[str, float],
    ) -> int:  # fmt: skip
        found = [judge(study, shift, margins)[metric] for study in self.studies[size]]
        if what == "equivalent":  # whether or not a difference is found, too
            return sum(one.negligible for one in found)
        return sum(one.verdict == what for one in found)

    def _row(
        self, size: int, metric: str, planted: float, stated: float, found: int, exact: bool = False
    ) -> Sequence[object]:
        studies = len(self.studies[size])
        low, high = interval(found, studies)
        self.failed |= stated > high or (exact and stated < low)
        share = f"{found / studies:.3f}"
        return (size, metric, planted, f"{stated:.3f}", share, f"[{low:.3f}, {high:.3f}]")


def main() -> None:
    """Train what is missing, judge, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, default=Path("build/calibration.jsonl"))
    parser.add_argument("--seeds", type=int, default=1000, help="default 1000")
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    args = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage in every correction: thousands of times here
    found = Calibration(pool(args.pool, args.seeds, args.processes))
    table(("metric", "SD of paired differences", "skewness", "excess kurtosis"), found.noise())
    levels = ("p < 0.05", "p < 0.01", "p < 0.001")
    table(("seeds", "A/A studies", *levels, "with a verdict", "bound"), found.no_effect())
    kinds = ("better or worse", *KINDS)
    table(("seeds", "metric", "A/A studies", *kinds), found.default_margins())
    shares = ("found", "interval")
    table(("seeds", "metric", "effect (SD)", "stated power", *shares), found.effects())
    table(
        ("seeds", "metric", "margin (SD)", "stated power", *shares), found.equivalence(MARGINS, 0)
    )
    table(
        ("seeds", "metric", "margin (SD)", "stated chance", *shares),
        found.equivalence(MARGINS[1:], 1),
    )
    sys.exit("\na bound is not met" if found.failed else 0)


if __name__ == "__main__":
    main()
