"""What the models of a study are, and what SAEs are trained on them, as far as it is known."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence

from sae_plugins.eval_suites.evaluation.results import Result
from sae_plugins.study.cells import Cell, grouped
from sae_plugins.study.findings import ModelInfo
from sae_plugins.world import NAME as WORLD
from sae_plugins.world.synthetic_models import SYNTHETIC, SYNTHETIC_MODELS

_EMBEDDED = "the embedded world, a language model of Gemma 2's architecture, of made-up text"


def models(
    cells: Sequence[Cell],
    results: Mapping[str, Mapping[str, Result]],
    widths: Mapping[str, Collection[int]],
) -> dict[str, ModelInfo]:
    """By the study's name of the model.

    Args:
        cells: all SAEs of the study.
        results: by model and suite, one that was evaluated.
        widths: by model, those of its SAEs.
    """
    found = {}
    for model, members in grouped(cells, lambda cell: cell.model).items():
        of_model = list(results.get(model, {}).values())
        trained = [cell.settings for cell in members if not cell.existing]
        first = members[0].settings
        true_l0s = (one.metrics["true_l0"].value for one in of_model if "true_l0" in one.metrics)
        found[model] = ModelInfo(
            name=first.model_name,
            what=_what(first.model_name),
            is_synthetic=first.is_synthetic,
            hook_name="" if first.is_synthetic else first.get("hook_name") or "",
            d_in=next((one.sae.d_in for one in of_model), None),
            d_sae=sorted(widths.get(model, ())),
            training_tokens=sorted({int(one.get("training_tokens")) for one in trained}),
            true_l0=next(true_l0s, None),
        )
    return found


def _what(name: str) -> str:
    """A sentence about a model of the package; empty for others."""
    if name == WORLD:
        return _EMBEDDED
    made = SYNTHETIC_MODELS.get(name.removeprefix(SYNTHETIC))
    return (inspect.getdoc(made) or "").partition("\n")[0].rstrip(".") if made else ""
