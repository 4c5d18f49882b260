"""The tables of packaged studies in docs/studies.md and docs/papers.md.

    python benchmarks/study_tables.py toy hybrid-order    # hours; started again, it goes on
    python benchmarks/study_tables.py toy.small           # a part of `toy`, on one model

Those of synthetic models have ten seeds, and each of their models is a study of its own, so that it
can be run, and its results kept, by itself. Those of papers are run at a reduced budget: the
packaged steps and seeds, at fewer L0s. So is `smollm2`, on what `python benchmarks/smollm2.py
build/smollm2` makes. `docs/generate.py` puts what this writes into the pages.
"""

import argparse
import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from sae_plugins.base.files import write
from sae_plugins.base.text import arrow
from sae_plugins.entrypoints.main import main as sae_plugins
from sae_plugins.eval_suites.evaluation.metrics import HELDOUT, TRAINING
from sae_plugins.study.facts import Facts, Place
from sae_plugins.study.findings import Findings
from sae_plugins.study.gather import FINDINGS
from sae_plugins.study.unmatched import table as unmatched
from sae_plugins.study.words import MARKS, Table, grid, mean_interval, number

_SYNTHETIC = ("toy", "toy-128", "small")
"""The models of `toy` and `toy-norm`."""
_OURS = (*_SYNTHETIC, "world")
"""Those of `ours`."""
SMOLLM2 = "build/smollm2"
"""Where `make smollm2` puts the language model and its text."""


def _one(model: str, of: tuple[str, ...]) -> dict[str, Any]:
    return {"models": {other: None for other in of if other != model}}


def _ten(model: str) -> dict[str, Any]:
    return {"seeds": list(range(10)), **_one(model, _SYNTHETIC)}


def _at(*l0s: float) -> dict[str, Any]:
    return {"models": {"world": {"target_l0": [*l0s], "train": {"fast_step": True}}}}


def _from_registries() -> dict[str, Any]:
    """What can be had without the Hub, and less of it: see `benchmarks/smollm2.py`."""
    text = f"{SMOLLM2}/text"
    there = {
        "train": {
            "model_name": f"{SMOLLM2}/model",
            "dataset_path": text,
            "dataset_split": "train[:90%]",
            "streaming": False,
            "training_tokens": 2_000_000,
        },
        "tune": {"lr": [0.001, 0.002, 0.004], "seeds": 1},
        "suites": {"core": {"dataset": text, "skip_documents": 7412}},  # that is 90% of them
    }
    models = {"batchtopk": there, "matryoshka": there, "unit-rows": None, "jumprelu": None}
    return {"models": models}


CHANGES: dict[str, dict[str, Any]] = {
    "quick": {},
    **{f"{name}.{m}": _ten(m) for name in ("toy", "toy-norm") for m in _SYNTHETIC},
    **{f"ours.{m}": _one(m, _OURS) for m in _OURS},
    "auto-k": {},
    "smollm2": _from_registries(),
    "hybrid-order": _at(16),
    "hierarchical": _at(48, 108),  # of the paper's own test
    "adaptive-threshold": _at(16),
    "adaptive-orthogonality": _at(16),
}
"""The studies, or STUDY.MODEL, and what is otherwise in them than in the packaged ones."""
PARTS: dict[str, list[str]] = {}
for _name in CHANGES:
    PARTS.setdefault(_name.partition(".")[0], []).append(_name)
    PARTS.setdefault(_name, [_name])
RESULTS = Path(__file__).parent / "results"


def tables(findings: Findings, is_part: bool) -> Iterator[str]:
    """A table of each model: the reference's scores, and how arms differ from it at equal L0.

    The model is named where there are several, here or in other parts.
    """
    facts = Facts(findings, Path())
    for model in facts.models:
        metrics = facts.compared(model)
        places = [(metric.suite, metric.name) for metric in metrics]
        known = [facts.samples.get((model, facts.reference, *place), {}) for place in places]
        middle = facts.middle.get((model, facts.reference), "")
        own = [mean_interval([*values.get(middle, {}).values()]) for values in known]
        papers = ["the paper prints"] if any(arm.paper for arm in facts.arms.values()) else []
        rows = [
            [
                f"{facts.reference}, at an L0 of {number(facts.middle_l0[model])}",
                *("" for _ in papers),
                *own,
            ]
        ]
        rows += [
            [
                arm,
                *(info.paper for _ in papers),
                *(cell(facts, (model, arm, *place)) for place in places),
            ]
            for arm, info in facts.arms.items()
            if arm != facts.reference and (model, arm) in facts.runs
        ]
        heads = [f"{facts.label(model, metric)} {arrow(metric.better)}" for metric in metrics]
        where = f"On `{model}`:\n\n" if len(facts.models) > 1 or is_part else ""
        yield f"{where}{grid(Table('', ['arm', *papers, *heads], rows))}\n"
        if own_test := unmatched(facts, model):
            yield f"The paper's own test, of SAEs of other L0s:\n\n{grid(own_test)}\n"


def cell(facts: Facts, place: Place) -> str:
    """A difference, its verdict's mark, L0s that are not the usual ones, and where it is not so.

    It is in brackets if it is underpowered.
    """
    found = facts.comparisons.get(place)
    if found is None or found.difference is None or found.verdict == "no verdict":
        return "none"
    shown = f"{MARKS.get(found.verdict, '')} {found.difference:+.3f}".strip()
    shown = f"({shown})" if found.verdict == "underpowered" else shown
    l0s = facts.over[place[0]].others.get(place)
    shown = f"{shown} at {l0s}" if l0s else shown
    return f"{shown} {facts.exceptions[place]}".strip()


def run(name: str, folder: Path, options: list[str]) -> None:
    """Run a packaged study with its changes, and keep what came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    study = name.partition(".")[0]
    file = folder / f"{name}.yaml"
    write(file, yaml.safe_dump({"extends": study, **CHANGES[name]}, sort_keys=False))
    out = folder / name
    cache = ["--activation_cache", str(folder / "activations")] if name == "smollm2" else []
    sae_plugins(["study", "run", str(file), "--output_path", str(out), *cache, *options])
    keep(name, (out / FINDINGS).read_text("utf-8"), chosen_ks(out))
    by_seed(out, RESULTS / f"{name}.csv.gz")


def chosen_ks(out: Path) -> str:
    """What `auto-k` chose, by model and arm, a number for each seed; empty where it did not run."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in sorted(out.glob("saes/*/*/summary.json")):
        summary = json.loads(file.read_text("utf-8"))
        if "auto-k/k" in summary:
            arm = file.parent.name.partition("_")[0]
            distinct = "" if summary["auto-k/distinct"] else " (the k that was given)"
            found[file.parent.parent.name, arm].append(f"{summary['auto-k/k']:.2f}{distinct}")
    rows = [[model, arm, ", ".join(ks)] for (model, arm), ks in found.items()]
    return grid(Table("", ["model", "arm", "k, by seed"], rows)) if rows else ""


def by_seed(out: Path, file: Path) -> None:
    """Keep the scores of each seed's SAEs on the suites' metrics, without those of training."""
    text = StringIO()
    with (out / "scores.csv").open(encoding="utf-8", newline="") as scores:
        rows = csv.DictReader(scores)
        kept = csv.DictWriter(text, rows.fieldnames or (), lineterminator="\n")
        kept.writeheader()
        kept.writerows(row for row in rows if row["suite"] not in (HELDOUT, TRAINING))
    file.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def keep(name: str, found: str, ks: str) -> None:
    """Write a study's tables, and its findings, from which `docs/gallery.py` makes a report."""
    findings = Findings.model_validate_json(found)
    (RESULTS / f"{name}.json.gz").write_bytes(gzip.compress(found.encode(), mtime=0))
    said = "\n".join(
        fill(f"- {text}", 100, subsequent_indent="  ")
        for text in [*findings.warnings, *findings.failures]
    )
    seeds = f"{len(findings.study.seeds)} seeds"
    parts = [
        f"{seeds}.\n",
        *tables(findings, "." in name),
        *([f"The k that was chosen:\n\n{ks}\n"] if ks else []),
        *_measures(findings),
        *([said] if said else []),
    ]
    write(RESULTS / f"{name}.md", "\n".join(parts) + "\n")


def _measures(findings: Findings) -> Iterator[str]:
    """What the paper's numbers really measure."""
    for what, text in findings.study.measures.items():
        yield fill(f"- **{what}**: {' '.join(text.split())}", 100, subsequent_indent="  ")


def main() -> None:
    """Run the studies that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=PARTS, help="which of them")
    parser.add_argument("--folder", type=Path, default=Path("studies/tables"))
    parser.add_argument("--jobs", default=None, help="as for sae-plugins study run")
    given = parser.parse_args()
    for name in dict.fromkeys(part for study in given.studies for part in PARTS[study]):
        run(name, given.folder, ["--jobs", given.jobs] if given.jobs else [])


if __name__ == "__main__":
    main()
