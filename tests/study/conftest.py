"""A study that never ran: made-up scores and the run folders that belong to them."""

import itertools
import json
import string

import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_plugins.study.findings import (
    ArmInfo,
    Contrast,
    Detail,
    Findings,
    ReportedMetric,
    Score,
    Trained,
)
from sae_plugins.study.spec import Study
from sae_plugins.study.statistics import Point, Question, compare

ARMS = {
    "l1": "baseline",
    "hybrid-order": "method",
    "hierarchical": "method",
    "adaptive-threshold": "method",
    "adaptive-orthogonality": "method",
    "masked-orthogonality": "ours",
    "batchtopk": "control",
    "post-hoc-threshold": "control",
    "untrained": "control",
}
METRICS = (
    # suite, name, paper, better, level at L0 10, slope per e-fold of L0, noise
    ("core", "explained_variance_centred", "explained variance", "higher", 0.6, 0.1, 0.004),
    ("core", "ce_loss_score", "loss recovered", "higher", 0.8, 0.06, 0.006),
    ("absorption", "mean_full_absorption_score", "absorption", "lower", 0.3, -0.05, 0.02),
    ("absorption", "mean_num_split_features", "feature splitting", "lower", 1.6, -0.1, 0.1),
    ("scr", "scr_metric_threshold_20", "SCR", "higher", 0.2, 0.02, 0.05),
    ("sparse-probing", "sae_top_1_test_accuracy", "sparse probing", "higher", 0.7, 0.03, 0.01),
    ("sparse-probing", "sae_top_5_test_accuracy", "sparse probing", "higher", 0.8, 0.03, 0.01),
    ("heldout", "never_fired", "never fired", "lower", 0.1, 0.01, 0.01),
)
ITEMS = {
    "absorption": ("full_absorption_rate", tuple(string.ascii_lowercase)),
    "scr": ("scr_metric_threshold_20", ("professor_nurse", "architect_journalist")),
    "sparse-probing": ("sae_top_1_test_accuracy", ("bias_in_bios", "ag_news", "europarl")),
}
EFFECTS = {"masked-orthogonality": 3.0, "hierarchical": -3.0, "untrained": -12.0}
"""In units of a metric's noise; the first alternates between metrics."""
BOUNDS = {"ce_loss_score": (None, 1.0), "never_fired": (0.0, 1.0)}
D_SAE, D_IN = 64, 16


def _study(arms, models, seeds, primary):
    return Study(
        primary=primary,
        description="Do the four methods beat plain L1 at equal L0?",
        reference="l1",
        models={
            model: {"train": {"recipe": "baseline-demo"}, "suites": {"core": {}}}
            for model in models
        },
        arms={name: {"kind": kind} for name, kind in arms.items()},
        seeds=list(range(seeds)),
        measures={"Semantic consistency": "a constant: it does not depend on the SAE"},
    )


def _write_run(folder, arm, rng, l0):
    folder.mkdir(parents=True)
    rows = []
    for step in range(10, 400, 10):
        row = {
            "step": step,
            "samples": step * 512,
            "losses/overall_loss": 2000 / step + 80 + rng.normal(),
            "metrics/l0": l0 * (1 + 400 / step),
            "metrics/explained_variance": 0.8 - 10 / step,
        }
        if arm == "hybrid-order" and step % 100 == 0:
            row["changes/permuted"] = D_SAE
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    save_file(
        {"W_dec": rng.normal(size=(D_SAE, D_IN)).astype(np.float32)},
        folder / "sae_weights.safetensors",
    )
    logs = rng.uniform(-4, -0.5, D_SAE).astype(np.float32)
    logs[:3] = -10
    if arm == "hybrid-order":
        logs = np.sort(logs)[::-1].copy()
    save_file({"sparsity": logs}, folder / "sparsity.safetensors")


@pytest.fixture(scope="session")
def make_findings():
    return findings


def findings(
    folder,
    arms=ARMS,
    models=("world",),
    seeds=5,
    grid=(8, 16, 32),
    metrics=METRICS,
    margins=None,
    primary=None,
):
    """Findings of a study in which two arms differ, with the folders of its runs."""
    margins, study = margins or {}, _study(arms, models, seeds, primary or {})
    rng = np.random.default_rng(0)
    trained, scores, details, points = [], [], [], {}
    for model in models:
        for seed in range(seeds):
            common = rng.normal(size=len(metrics))
            for place, arm in enumerate(arms):
                for goal in grid:
                    l0 = float(goal * rng.uniform(0.85, 1.15) * (0.9 + 0.02 * (place % 9)))
                    where = {"model": model, "arm": arm, "seed": seed, "sparsity": f"k={goal}"}
                    run = f"saes/{model}/{arm}_{goal}_{seed}"
                    _write_run(folder / run, arm, rng, l0)
                    trained.append(Trained(**where, folder=run, status="ok", l0=l0))
                    of_run = {"heldout/l0": l0}
                    for number, (suite, name, _, better, at, slope, noise) in enumerate(metrics):
                        effect = EFFECTS.get(arm, 0) * (1 if better == "higher" else -1)
                        if arm == "masked-orthogonality" and number % 2:
                            effect = 0
                        of_run[f"{suite}/{name}"] = (
                            at + slope * np.log(l0 / 10)
                            + noise * (common[number] + 0.7 * rng.normal() + effect)
                        )  # fmt: skip
                    for metric, value in of_run.items():
                        suite, name = metric.split("/")
                        scores.append(
                            Score(**where, suite=suite, metric=name, value=float(value), n=26)
                        )
                        key = (model, suite, name, arm)
                        points.setdefault(key, []).append(Point(seed, l0, float(value)))
                    for suite, (name, items) in ITEMS.items():
                        details += [
                            Detail(**where, suite=suite, metric=name, item=item,
                                   value=float(rng.uniform(0, 1)))
                            for item in items
                        ]  # fmt: skip
    families = {}
    for model, (suite, name, _, better, *_), arm in itertools.product(models, metrics, arms):
        if arm != "l1":
            place = (model, suite, name)
            families.setdefault(study.family(arm, f"{suite}/{name}"), {})[(*place, arm)] = Question(
                points[(*place, arm)], points[(*place, "l1")], better, margins.get(name)
            )
    return Findings(
        name="quick",
        study=study,
        arms=[
            ArmInfo(
                name=name, kind=kind, description=f"What {name} does", flags=f"--plugin {name}",
                paper="loss 6910.19 (Table 1)" if kind == "method" else "",
            )
            for name, kind in arms.items()
        ],
        metrics={
            model: [
                *(
                    ReportedMetric(suite=suite, name=name, paper=paper,
                           meaning=f"what {name} means", better=better, compared=True,
                           margin=margins.get(name), bounds=BOUNDS.get(name, (None, None)),
                           unreliable="SCR is noisy (arXiv 2605.18229)" if suite == "scr" else "")
                    for suite, name, paper, better, *_ in metrics
                ),
                ReportedMetric(suite="heldout", name="l0", paper="L0", meaning="active features",
                       better="neither", compared=False),
            ]
            for model in models
        },
        trained=trained,
        scores=scores,
        details=details,
        contrasts=[
            Contrast(model=model, arm=arm, suite=suite, metric=name, comparison=comparison,
                     family=family)
            for family, questions in families.items()
            for (model, suite, name, arm), comparison in compare(questions).items()
        ],
        provenance={
            "written": "2026-11-21T16:00:00+00:00",
            "versions": {"sae-plugins": "0.1.0", "torch": "2.15.0"},
            "language models": {"sae-plugins-world": "5d41402a (float32)"},
            "suite settings": {"world/core": {"n_eval_sparsity_variance_batches": 2000}},
        },
    )  # fmt: skip
