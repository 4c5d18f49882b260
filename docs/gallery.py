"""Makes the site's gallery and the front page's figure from what is kept: `make docs`.

The report comes from a study's findings in `benchmarks/results/`, the feature page from the SAE in
`docs/gallery/sae/`, which `sae-plugins train --recipe reorder-demo --d_sae 256` trained.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

from sae_plugins.base.plots import save
from sae_plugins.entrypoints.main import main as sae_plugins
from sae_plugins.study import figures
from sae_plugins.study.facts import Facts
from sae_plugins.study.findings import Findings
from sae_plugins.study.report import write
from sae_plugins.study.sections import frontier_panel

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "benchmarks" / "results"
SAE = FOLDER / "gallery" / "sae"
SITE = FOLDER.parent / "build" / "site" / "gallery"
FRONT_FIGURE = FOLDER / "assets" / "frontiers.png"
FRONT = {
    ("world", "ce_loss_score"): "loss recovered, on a language model ↑",
    ("toy", "recovered"): "true features found, where known ↑",
}
"""The metrics of the study `quick` on the front page, by model and name."""


def findings(study: str) -> Findings:
    """What a packaged study, or a part of one, has found."""
    text = gzip.decompress((RESULTS / f"{study}.json.gz").read_bytes())
    return Findings.model_validate_json(text)


def front(found: Findings) -> None:
    """The front page's figure."""
    facts = Facts(found, Path())
    panels = [
        replace(frontier_panel(facts, model, metric), title=FRONT[model, metric.name])
        for model in facts.models
        for metric in facts.compared(model)
        if (model, metric.name) in FRONT
    ]
    save(figures.draw_panels(panels, facts.looks), FRONT_FIGURE)


def main() -> None:
    """Make all of them."""
    found = findings("quick")
    front(found)
    (SITE / "quick").mkdir(parents=True, exist_ok=True)
    write(found, SITE / "quick")
    page = SITE / "features"
    line = ["features", str(SAE), "--tokens", "60000", "--output_path", str(page)]
    code = sae_plugins([*line, "--overwrite"])
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
