"""`sae_plugins.recorded(...)`: what it leaves, gives back, and refuses."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from faults import interrupted

import sae_plugins
from sae_plugins.base.errors import PluginError, SaePluginsError
from sae_plugins.framework.profile import Profile
from sae_plugins.framework.resolve import resolve
from sae_plugins.runs.recorder import Recorder
from sae_plugins.runs.summary import calibration_of
from sae_plugins.testing import TOKENS, tiny_batches, tiny_sae, tiny_trainer

pytestmark = pytest.mark.usefixtures("sketched")
OPTIONS = {"reorder": {"interval": 4, "start": 2}}
RECORDS = {
    *("files.json", "metrics.jsonl", "summary.json"),
    *("figures/loss_and_l0.png", "figures/firing_by_position.png", "figures/metrics/reorder.png"),
}


def fit(steps: int, fails: bool = False, done: int = 0, architecture: str = "standard") -> Any:
    """Train a tiny SAE on the batches that are not done; returns its trainer."""
    batches, total = tiny_batches(steps=steps), steps * TOKENS
    trainer = tiny_trainer(tiny_sae(architecture), batches[done:], total_training_samples=total)
    trainer.fit()
    if fails:
        raise ZeroDivisionError
    return trainer


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_training_leaves_its_records_and_the_plan_gives_them_back(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    with sae_plugins.recorded(run, "reorder", options=OPTIONS, seed=0, every=2) as plan:
        assert plan.record.metrics == []
        assert [plugin.name for plugin, _ in plan.plugins][-1] == "recorder"
        trainer = fit(10)
        assert plan.record.metrics[-1]["step"] == 10
        assert plan.record.summary == {}
    assert files(run) == {*RECORDS, "metrics_by_feature.jsonl"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert plan.record.metrics == rows
    assert rows[-1]["step"] == 10
    assert plan.record.summary == json.loads((run / "summary.json").read_text())
    assert plan.record.summary["training/steps"] == 10
    assert plan.record.summary["run/seconds"] >= 0
    assert {str(path.relative_to(run)) for path in plan.record.figures} == {
        name for name in RECORDS if name.startswith("figures")
    }
    recorded = trainer.sae.cfg.metadata.sae_plugins
    assert [plugin["name"] for plugin in recorded["plugins"]] == ["reorder"]


def test_records_are_replaced_only_on_demand_and_a_failed_training_replaces_none(
    tmp_path: Path,
) -> None:
    with sae_plugins.recorded(tmp_path / "x", every=1):
        fit(3)
    for name in ("figures/mine.txt", "figures/metrics/mine.png", "metrics_mine.jsonl"):
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_text("mine")
    before = (tmp_path / "x" / "metrics.jsonl").read_text()
    with (
        pytest.raises(PluginError, match=r"holds the records of .*overwrite=True to replace"),
        sae_plugins.recorded(tmp_path / "x"),
    ):
        raise AssertionError
    for number in (1, 2):
        with (
            pytest.raises(ZeroDivisionError),
            sae_plugins.recorded(tmp_path / "x", every=1, overwrite=True) as plan,
        ):
            fit(4, fails=True)
        assert len(plan.record.metrics) == 4
        assert (tmp_path / "x" / "metrics.jsonl").read_text() == before
        assert len([*tmp_path.glob("x/unfinished*")]) == number
    with sae_plugins.recorded(tmp_path / "x", every=1, overwrite=True, figures=False) as plan:
        fit(5)
    assert len(plan.record.metrics) == 5
    kept = {name for name in files(tmp_path / "x") if not name.startswith("unfinished")}
    mine = {"figures/mine.txt", "figures/metrics/mine.png", "metrics_mine.jsonl"}
    assert kept == {"files.json", "metrics.jsonl", "summary.json", *mine}


@pytest.mark.parametrize("then", [0, 3])
def test_a_training_whose_failure_is_caught_inside_has_not_ended(
    then: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with sae_plugins.recorded(tmp_path / "x", every=1, figures=False) as plan:
        with interrupted(3), suppress(KeyboardInterrupt):
            fit(4)
        if then:
            fit(then)
    assert not (tmp_path / "x" / "summary.json").exists()
    assert plan.record.summary == {}
    assert [row["step"] for row in plan.record.metrics] == [1, 2, 3]
    assert len(plan.record.of(2).metrics) == then
    which = "1 of 2 trainings" if then else "it"
    assert f"since {which} did not reach the end; what was recorded stays in {tmp_path}" in (
        caplog.text
    )


def test_trainings_that_follow_each_other_have_files_of_their_own(tmp_path: Path) -> None:
    with sae_plugins.recorded(tmp_path / "x", every=1, figures=False) as plan:
        fit(2)
        fit(3)
    records = [plan.record.of(number) for number in (1, 2, 3)]
    assert [len(record.metrics) for record in records] == [2, 3, 0]
    assert [record.summary.get("training/steps") for record in records] == [2, 3, None]


def test_the_summary_says_how_thresholds_were_set(tmp_path: Path) -> None:
    training = {"calibrate_threshold": True, "calibrate_tokens": 2 * TOKENS}
    with sae_plugins.recorded(tmp_path / "x", training=training, figures=False) as plan:
        runs = [fit(2, architecture="batchtopk").run for _ in range(2)]
    for number, run in enumerate(runs, 1):
        assert run.calibration is not None
        assert calibration_of(plan.record.of(number).summary) == run.calibration


def test_no_recorder_of_somebody_else_is_replaced_without_a_word(tmp_path: Path) -> None:
    other = {"output_path": str(tmp_path / "y"), "every": 1}
    for names, options in (((Recorder,), {"recorder": other}), ((), {"recorder": {"every": 1}})):
        with (
            pytest.raises(PluginError, match="it brings a recorder of its own: leave yours out"),
            sae_plugins.recorded(tmp_path / "x", *names, options=options),
        ):
            raise AssertionError
    plan = resolve([Recorder], options={"recorder": other})
    with (
        pytest.raises(PluginError, match="it brings a recorder of its own"),
        sae_plugins.recorded(tmp_path / "x", plan),
    ):
        raise AssertionError
    assert not [*tmp_path.iterdir()]


def test_a_training_that_goes_on_has_every_row_once(
    tmp_path: Path,
) -> None:
    def train(name: str, resume: bool) -> list[dict[str, float]]:
        state = sae_plugins.Checkpoints(tmp_path / name / "resume", every="2", resume=resume)
        with sae_plugins.recorded(
            tmp_path / name, "reorder", options=OPTIONS, seed=0, every=1, checkpoints=state
        ) as plan:
            fit(10, done=state.step or 0)
        return [{**row, "seconds": 0} for row in plan.record.metrics]

    whole = train("whole", False)
    with interrupted(6), pytest.raises(KeyboardInterrupt):
        train("x", False)
    assert files(tmp_path / "x") >= {"unfinished/metrics.jsonl"}
    assert train("x", True) == whole
    assert not (tmp_path / "x" / "unfinished").exists()


@pytest.mark.parametrize("place", [".", "unfinished"])
def test_a_run_of_the_command_line_is_left_alone(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "run.yaml").touch()
    with (
        pytest.raises(PluginError, match="holds a run of sae-plugins train"),
        sae_plugins.recorded(tmp_path, overwrite=True),
    ):
        raise AssertionError
    assert files(tmp_path) == {str(Path(place, "run.yaml"))}


def test_a_plan_that_was_recorded_can_be_recorded_again(tmp_path: Path) -> None:
    with sae_plugins.recorded(tmp_path / "x", "nan-guard", figures=False) as plan:
        fit(2)
    with sae_plugins.recorded(tmp_path / "y", plan, every=1) as again:
        fit(2)
    with sae_plugins.recorded(tmp_path / "z", again) as third:  # as it was recorded before
        fit(2)
    assert [len(each.record.metrics) for each in (plan, again, third)] == [1, 2, 2]
    assert third.record.figures == []


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, settings, said in (
        ("x", {"every": 0}, "every 0: it must be at least 1"),
        ("file", {}, "recorded: .*file cannot be written to: file exists"),
        ("x", {"options": OPTIONS}, "options are given for 'reorder', which is not chosen"),
    ):
        with (
            pytest.raises(SaePluginsError, match=said),
            sae_plugins.recorded(tmp_path / folder, **settings),
        ):
            raise AssertionError
    with sae_plugins.recorded(tmp_path / "x"):
        pass  # nothing is trained
    assert not (tmp_path / "x").exists()
    with (
        sae_plugins.recorded(tmp_path / "x"),
        pytest.raises(PluginError, match="is being recorded into already"),
        sae_plugins.recorded(tmp_path / "x"),
    ):
        raise AssertionError


def test_a_profile_is_in_the_summary(tmp_path: Path) -> None:
    with sae_plugins.recorded(tmp_path / "x", profile=Profile(), figures=False) as plan:
        fit(2)
    assert plan.record.summary["profile"]
