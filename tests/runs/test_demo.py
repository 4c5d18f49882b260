"""The demos: on any model, whatever the scale of its activations; and to their end, slowly.

`test_rows.py` trains each of them for some steps on the embedded world, with the rows of its table,
so that here the default run has only one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from language_models import Given
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_plugins import recipes
from sae_plugins.base.files import read_rows
from sae_plugins.entrypoints.main import main
from sae_plugins.runs import language_model
from sae_plugins.runs.texts import splits

DEMOS = [name for name in recipes.names() if name.endswith("-demo")]
QUICK = "adaptive-threshold-demo"
every_demo = pytest.mark.parametrize(
    "demo", [pytest.param(x, marks=[] if x == QUICK else pytest.mark.slow) for x in DEMOS]
)


def train(demo: str, folder: Path, flags: str = "") -> dict[str, Any]:
    """The closing summary of a demo."""
    command = f"train --recipe {demo} {flags} --output_path {folder}"
    assert main(shlex.split(command)) == 0
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


# -- another model -----------------------------------------------------------------------------

CONTEXT, VOCABULARY = 64, 50
ELSEWHERE = (
    f"--model_name tiny --hook_name blocks.0.hook_resid_pre --dataset_path none "
    f"--context_size {CONTEXT} --store_batch_size_prompts 8 --n_batches_in_buffer 16 "
    "--train_batch_size_tokens 64 --training_tokens 19200 --n_batches_for_norm_estimate 4 "
    "--heldout_tokens 1024"
)
"""300 steps: more than any of the demos' starts."""


def model(scale: float) -> HookedTransformer:
    """A model whose activations have this scale."""
    config = HookedTransformerConfig(
        n_layers=1,
        d_model=16,
        n_ctx=CONTEXT,
        d_head=8,
        n_heads=2,
        d_vocab=VOCABULARY,
        act_fn="gelu",
        seed=0,
        device="cpu",
    )
    with torch.random.fork_rng(devices=[]):
        made = HookedTransformer(config)
    made.W_E.data *= scale
    made.W_pos.data *= scale
    return made


def text() -> Dataset:
    """Documents of a context each, with frequent and rare tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.zipf(1.5, size=(600, CONTEXT)) % VOCABULARY
    return Dataset.from_dict({"tokens": tokens.tolist()})


@pytest.mark.ci
@every_demo
@pytest.mark.usefixtures("sketched")
def test_a_demo_is_the_same_at_any_scale_of_the_activations(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    monkeypatch.setattr(splits, "load_rows", lambda _: text())
    for scale in (1.0, 64.0):  # a power of 2, so that no float is rounded otherwise
        given = Given(model(scale))
        monkeypatch.setattr(language_model, "model_loader", lambda _, given=given: given)
        monkeypatch.setattr(language_model, "commits", lambda *_: {})  # nobody asks the Hub
        summary = train(demo, folder := tmp_path / str(scale), ELSEWHERE)
        assert summary["training/steps"] == 300
        rows = read_rows(folder / "metrics.jsonl")
        losses.append([row.get("losses/overall_loss") for row in rows])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


@every_demo
@pytest.mark.usefixtures("sketched")
def test_a_demo_trains_on_the_synthetic_model(demo: str, tmp_path: Path) -> None:
    flags = "--model_name synthetic:toy --training_tokens 4096 --train_batch_size_tokens 256"
    summary = train(demo, tmp_path / "run", f"{flags} --n_batches_for_norm_estimate 2")
    assert np.isfinite(summary["training/loss"])


# -- to the end --------------------------------------------------------------------------------

ACTED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "baseline-demo": lambda summary: True,
    "hybrid-order-demo": lambda summary: (
        summary["reorder/triggered"] > 0
        and summary["reorder/reorderings"] > summary["reorder/triggered"]
        and summary["reorder/order_stable_from_step"] is not None
        and summary["reorder/largest_loss_change"] < 1e-4
    ),
    "reorder-demo": lambda summary: (
        summary["reorder/reorderings"] > 5
        and summary["reorder/largest_loss_change"] < 1e-4
        and summary["heldout/explained_variance"] > 0.8
    ),
    "hierarchical-demo": lambda summary: (
        summary["merge/features"] > 0
        and summary["resample/features"] > 0
        and summary["reconstruction-l1/share_of_steps_at_greatest"] < 0.9
    ),
    "adaptive-threshold-demo": lambda summary: (
        0 < summary["activation-threshold/least"] < summary["activation-threshold/greatest"]
    ),
    "adaptive-orthogonality-demo": lambda summary: summary["coactivation-penalty/tau"] != 0.05,
    "late-untying-demo": lambda summary: summary["heldout/explained_variance"] > 0.8,
    "masked-orthogonality-demo": lambda summary: (
        summary["decoder-orthogonality/largest_cosine"] < 0.7
        and summary["decoder-orthogonality/duplicates"] == 0
    ),
}
"""Whether the mechanisms did something, by the closing summary."""


@pytest.mark.slow
@pytest.mark.parametrize("demo", DEMOS)
def test_a_demo_learns(demo: str, tmp_path: Path) -> None:
    summary = train(demo, tmp_path / "run")
    assert summary["heldout/explained_variance"] > 0.6
    assert 3 < summary["heldout/l0"] < 40
    assert ACTED[demo](summary)
    assert (tmp_path / "run" / "figures" / "loss_and_l0.png").stat().st_size > 1000
