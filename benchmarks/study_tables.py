"""The tables of docs/studies.md: the studies of synthetic models, with ten seeds.

    python benchmarks/study_tables.py      # hours; started again, it goes on where it was

`docs/generate.py` puts what this writes into the page.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from sae_plugins.base.files import write
from sae_plugins.base.text import arrow
from sae_plugins.entrypoints.main import main as sae_plugins
from sae_plugins.study.facts import Facts
from sae_plugins.study.files import load
from sae_plugins.study.findings import Findings
from sae_plugins.study.gather import FINDINGS
from sae_plugins.study.spec import as_yaml
from sae_plugins.study.statistics import Comparison
from sae_plugins.study.words import MARKS, Table, grid, mean_interval, number

STUDIES = ("toy", "toy-norm")
SEEDS = list(range(10))
RESULTS = Path(__file__).parent / "results"


def tables(findings: Findings) -> Iterator[str]:
    """A table of each model: the reference's scores, and how arms differ from it at equal L0."""
    facts = Facts(findings, Path())
    for model in facts.models:
        metrics = facts.compared(model)
        places = [(metric.suite, metric.name) for metric in metrics]
        known = [facts.samples.get((model, facts.reference, *place), {}) for place in places]
        middle = facts.middle.get((model, facts.reference), "")
        own = [mean_interval([*values.get(middle, {}).values()]) for values in known]
        rows = [[f"{facts.reference}, at an L0 of {number(facts.middle_l0[model])}", *own]]
        rows += [
            [arm, *(cell(facts.comparisons.get((model, arm, *place))) for place in places)]
            for arm in facts.arms
            if arm != facts.reference and (model, arm) in facts.runs
        ]
        heads = [f"{facts.label(model, metric)} {arrow(metric.better)}" for metric in metrics]
        yield f"On `{model}`:\n\n{grid(Table('', ['arm', *heads], rows))}\n"


def cell(found: Comparison | None) -> str:
    """A difference and its verdict's mark; in brackets where nothing can be concluded."""
    if found is None or found.difference is None or found.verdict == "no verdict":
        return "none"
    shown = f"{MARKS.get(found.verdict, '')} {found.difference:+.3f}".strip()
    return f"({shown})" if found.verdict == "underpowered" else shown


def run(name: str, folder: Path, seeds: list[int], jobs: list[str]) -> None:
    """Run a packaged study with other seeds, and write its tables."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    write(file, as_yaml(load(name).model_copy(update={"seeds": seeds})))
    out = folder / name
    sae_plugins(["study", "run", str(file), "--output_path", str(out), *jobs])
    findings = Findings.model_validate_json((out / FINDINGS).read_text("utf-8"))
    said = "\n".join(f"- {text}" for text in findings.warnings)
    text = (
        f"{len(seeds)} seeds.\n\n" + "\n".join(tables(findings)) + (f"\n{said}\n" if said else "")
    )
    write(RESULTS / f"{name}.md", text)


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", default=list(STUDIES), help="which of them")
    parser.add_argument("--folder", type=Path, default=Path("studies/tables"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", default=None, help="as for sae-plugins study run")
    given = parser.parse_args()
    for name in given.studies:
        run(name, given.folder, given.seeds, ["--jobs", given.jobs] if given.jobs else [])


if __name__ == "__main__":
    main()
