"""A search proposes settings, by scores alone, and the arm gets the best of them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from pydantic import ValidationError

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.study import execute
from sae_plugins.study.gather import gather
from sae_plugins.study.search import Search, Searched, Trial, run
from sae_plugins.study.spec import Study

SEARCH = Search.model_validate(
    {
        "over": {
            "lr": {"low": 0.0001, "high": 0.1, "log": True},
            "k": {"low": 2, "high": 30},
            "loss_form": ["mse", "l2_norm"],
        },
        "trials": 30,
    }
)


def score(flags: Mapping[str, Any]) -> list[float | None]:
    """Best at a learning rate of 0.003 and a k of 8."""
    return [-abs(math.log(flags["lr"] / 0.003)) - abs(flags["k"] - 8) / 8] * 2


def test_what_it_proposes_gets_better_and_fits() -> None:
    trials, is_over = run(SEARCH, score, "ours")
    assert is_over
    assert len(trials) == 30
    for trial in trials:
        assert 0.0001 <= trial.flags["lr"] <= 0.1
        assert isinstance(trial.flags["k"], int)
        assert trial.flags["loss_form"] in ("mse", "l2_norm")
    best = Searched(model="toy", arm="ours", l0=8, trials=trials).best
    assert best is not None
    assert (best.score or -9) > max(trial.score or -9 for trial in trials[:4])
    assert run(SEARCH, score, "theirs")[0][0].flags != trials[0].flags


@pytest.mark.parametrize("known", [0, 1, 4, 7, 29])
def test_what_is_proposed_next_follows_from_the_scores_alone(known: int) -> None:
    whole, _ = run(SEARCH, score, "ours")
    asked: list[Mapping[str, Any]] = []

    def so_far(flags: Mapping[str, Any]) -> list[float | None]:
        asked.append(flags)
        return score(flags) if len(asked) <= known else [None]

    trials, is_over = run(SEARCH, so_far, "ours")
    assert not is_over
    assert trials == whole[:known]
    assert asked == [trial.flags for trial in whole[: min(30, 4 * (known // 4) + 4)]]


def test_settings_that_fail_are_not_the_best() -> None:
    def fails(flags: Mapping[str, Any]) -> list[float | None]:
        return [math.nan, 1.0] if flags["loss_form"] == "mse" else [0.5, 0.6]

    trials, is_over = run(SEARCH, fails, "ours")
    assert is_over
    found = Searched(model="toy", arm="ours", l0=8, trials=trials)
    assert found.best is not None
    assert found.best.flags["loss_form"] == "l2_norm"
    none = Searched(model="toy", arm="ours", l0=8, trials=[Trial(flags={"k": 1}, scores=[None])])
    assert none.best is None
    assert "none of the settings under search" in none.warning


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"lr": {"low": 1, "high": 1}}, "low must be less than high"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "log needs a low"),
        ({"k": [8]}, "two values at least"),
        ({"k": [8, 8]}, "each once"),
        ({}, "at least 1"),
    ],
)
def test_what_is_no_search_is_refused(over: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Search.model_validate({"over": over})


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SaePluginsError, match=r"pip install 'sae-plugins\[search\]'"):
        run(SEARCH, score, "ours")


def study(arm: dict[str, Any], **toy: Any) -> Study:
    return Study.model_validate(
        {
            "reference": "topk",
            "models": {
                "toy": {
                    "train": {**toys.TRAIN, "heldout_tokens": 8192, "calibrate_tokens": 8192},
                    "sparsity": {"l1_coefficient": [0.3, 3], "k": [8]},
                    "target_l0": [5.5],
                    "suites": {},
                    **toy,
                }
            },
            "arms": {
                "topk": {"kind": "baseline", "train": {"architecture": "topk"}},
                "ours": {"train": {"architecture": "topk"}, **arm},
            },
            "seeds": [0],
        }
    )


LR = {
    "over": {"lr": {"low": 0.0003, "high": 0.03, "log": True}},
    "trials": 3,
    "at_once": 2,
    "seeds": 1,
}


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"search": {"over": {"k": [4, 8]}}}, "the study has this flag under sparsity"),
        ({"search": {"over": {"plugin": ["reorder", "merge"]}}}, "name plugins in arms of"),
        ({"search": LR, "tune": {"lr": [0.1, 0.2]}}, "both try learning rates"),
        ({"search": LR, "grid": {"lr": [0.1, 0.2]}}, "both try lr"),
        ({"search": LR, "untrained": True}, "would do nothing to SAEs that are not trained"),
        ({"search": LR, "train": {"lr": 0.1}}, "would do nothing beside"),
        ({"search": LR, "models": {"toy": {"train": {"lr": 0.1}}}}, "would do nothing on toy"),
    ],
)
def test_what_cannot_be_meant_is_said(arm: dict[str, Any], said: str) -> None:
    with pytest.raises(SaePluginsError, match=said):
        study(arm).check()


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.ci
@pytest.mark.usefixtures("sketched")
def test_an_arm_gets_the_best_settings_on_seeds_that_the_search_has_not_seen(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    wanted = study({"search": LR}, tune={"lr": [0.001, 0.01], "seeds": 1})
    execute.run(wanted, tmp_path, 1, Silent())
    findings = gather("try", wanted, tmp_path)
    (searched,) = findings.searched
    assert len(searched.trials) == 3
    assert searched.best is not None
    assert [one.arm for one in findings.tuned] == ["topk"], "a rate that is searched is not tuned"
    assert findings.learning_rates["toy"]["ours"] == searched.best.flags["lr"]
    assert searched.warning in findings.warnings
    assert {one.status for one in findings.trained} == {"ok"}
    for summary in tmp_path.glob("saes/*/ours*_tuning_*/summary.json"):
        assert not [x for x in json.loads(summary.read_text()) if x.startswith("heldout/")]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("saes/*/*/*.safetensors")}
    execute.run(wanted, tmp_path, 1, Silent())
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("saes/*/*/*.safetensors")}
    assert after == before


def test_a_search_needs_sae_at_equal_l0(tmp_path: Path) -> None:
    with pytest.raises(SaePluginsError, match="search needs target_l0"):
        execute.run(study({"search": LR}, target_l0=[]), tmp_path, 1, Silent())
