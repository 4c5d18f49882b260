"""SAEBench leaves nothing behind, and shows how far it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sae_bench.evals.absorption import probing

from sae_plugins.eval_suites.saebench import isolation


@pytest.mark.parametrize(
    ("desc", "said"),
    [("Epochs", "Epochs 3/3"), (None, "batch 3/3"), ("step 1/50", "step 1/50 3/3")],
)
def test_how_far_a_bar_is_becomes_a_stage(
    desc: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation._Log, "SECONDS", 0.0)
    stages: list[str] = []
    bench: Any = SimpleNamespace(
        folder=tmp_path, model=SimpleNamespace(hooked=None), stage=stages.append
    )
    with isolation.running(bench) as folder:
        for _ in probing.tqdm(range(3), desc=desc, mininterval=0):
            print("100% of it")
    assert list(dict.fromkeys(stages)) == [said.replace("3/3", f"{n}/3") for n in range(4)]
    assert "100% of it" in (folder / "saebench.log").read_text("utf-8")
