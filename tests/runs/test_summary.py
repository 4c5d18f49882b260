"""What a run says of itself at its end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_plugins import Plugin, hookimpl
from sae_plugins.runs.load import load_setup
from sae_plugins.runs.lockstep import LockstepRun, train
from sae_plugins.runs.recorder import Recorder
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settle import settle

TOY = (
    "--model_name synthetic:toy --training_tokens 1000 --train_batch_size_tokens 100 --k 4 "
    "--n_batches_for_norm_estimate 2 --heldout_tokens 500 --run_final_eval false --architecture "
)


class Falls(Plugin):
    """k falls from thrice what is given to twice that."""

    name = "falls"

    @hookimpl
    def before_forward(self, run: Any) -> Any:
        return {"k": 3 - run.step / run.total_steps}


def test_k_beside_the_heldout_l0_is_the_one_that_was_scored_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Recorder, "draw_figures", lambda *_: None)
    runs = []
    for name, flags in {
        "topk": "topk",
        "batchtopk": "batchtopk",
        "lagging": "batchtopk --calibrate_threshold false",
        "exact": "topk --calibrate_l0 2",
        "l1": "standard",
    }.items():
        line = TOY.replace("--k 4 ", "" if name == "l1" else "--k 4 ") + flags
        settings = settle(train_flags(line.split()))
        plan = settings.plan
        if name != "l1":
            plan = replace(plan, plugins=(*plan.plugins, (Falls, Falls.Options())))
        setup = load_setup(settings.for_saelens())
        runs.append(LockstepRun(name, setup, tmp_path / name, plan))
    assert train(runs) == {}
    found = {run.name: json.loads((run.folder / "summary.json").read_text("utf-8")) for run in runs}
    k = {name: summary.get("heldout/k") for name, summary in found.items()}
    assert k == {"topk": 8, "batchtopk": 8, "lagging": 8, "exact": None, "l1": None}
    assert found["topk"]["heldout/l0"] <= 8
    assert found["batchtopk"]["heldout/l0"] == pytest.approx(8, rel=0.1)
    assert found["batchtopk"]["calibration/l0"] == 8
    assert not any(name.endswith("training/k") for summary in found.values() for name in summary)
