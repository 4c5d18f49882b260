"""What a long command says while it works: on a terminal a bar, elsewhere lines."""

from __future__ import annotations

import io
from contextlib import closing

import pytest

from sae_plugins.entrypoints import progress
from sae_plugins.entrypoints.progress import RowsProgress, StudyProgress, TrainProgress
from sae_plugins.eval_suites.evaluation.manifest import Row

ROW = {"metrics/explained_variance": 0.5, "metrics/l0": 31.04, "sparsity/dead_features": None}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_has_a_line_every_thirty_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(TrainProgress(100)) as shown:
        for step in range(1, 101):
            clock[0] += 1
            shown.trained(step, 10 * step, ROW)
    assert capsys.readouterr().err.splitlines() == [
        " 30% step 30/100, 10 tokens/s, EV 0.5, L0 31, 70 s left (30 s)",
        " 60% step 60/100, 10 tokens/s, EV 0.5, L0 31, 40 s left (60 s)",
        " 90% step 90/100, 10 tokens/s, EV 0.5, L0 31, 10 s left (90 s)",
        "100% step 100/100, 10 tokens/s, EV 0.5, L0 31 (100 s)",
    ]


def test_a_resumed_run_begins_where_it_is(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(TrainProgress(100, done=70)) as shown:
        for step in range(71, 101):
            clock[0] += 2
            shown.trained(step, 10 * step, {})
    first, last = capsys.readouterr().err.splitlines()
    assert first == " 85% step 85/100, 5 tokens/s, 30 s left (30 s)"
    assert last.startswith("100% step 100/100, 5 tokens/s")


def test_nothing_is_said_of_speed_and_time_left_that_is_not_known(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(TrainProgress(100)) as shown:
        clock[0] = 40  # the buffer is filled
        for step in range(1, 101):
            shown.trained(step, 10 * step, {})
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == [
        "  1% step 1/100 (40 s)",
        " 31% step 31/100, 4 tokens/s (70 s)",
        " 61% step 61/100, 6 tokens/s, 64 s left (100 s)",
        " 91% step 91/100, 7 tokens/s, 13 s left (130 s)",
        "100% step 100/100, 7 tokens/s (139 s)",
    ]


def test_the_speed_of_a_short_run_is_that_of_its_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (1, 2):
        with closing(TrainProgress(steps)) as shown:
            clock[0] += 20
            for step in range(1, steps + 1):
                shown.trained(step, 100 * step, {})
    assert capsys.readouterr().err.splitlines() == [
        "100% step 1/1, 5 tokens/s (20 s)",
        "100% step 2/2, 10 tokens/s (20 s)",
    ]


def test_a_terminal_has_one_bar_that_ends_full(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with closing(TrainProgress(3)) as shown:
        for step in (1, 2, 3):
            shown.trained(step, 10 * step, ROW)
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("100% |")
    assert "step 3/3" in last
    assert "EV 0.5, L0 31" in last


def test_the_bar_of_a_resumed_run_begins_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    TrainProgress(100, done=70).close()
    assert terminal.getvalue().split("\r")[1].startswith(" 70% |")
    assert "step 70/100" in terminal.getvalue()


def test_a_log_of_an_evaluation_says_what_is_being_done(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row(suite="scr", sae="run", source="runs/run", seed=42, settings="")
    with closing(RowsProgress(2)) as shown:
        for status in ("ok", "failed"):
            shown.stage("scr, seed 42, run")
            clock[0] += 600
            shown.finished(row.model_copy(update={"status": status}), again=False)
    assert capsys.readouterr().err.splitlines() == [
        "0/2 scr, seed 42, run (0 s)",
        "1/2 scr, run, seed 42: ok (600 s)",
        "1/2 scr, seed 42, run (600 s)",
        "2/2 scr, run, seed 42: failed (1200 s)",
    ]


def test_a_study_says_where_it_is_in_long_stages(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(StudyProgress()) as shown:
        shown.expect(4)
        shown.stage("training")
        for _ in range(40):
            clock[0] += 1
            shown.advance(0.1)
    assert capsys.readouterr().err.splitlines() == [
        "  0% training (0 s)",
        " 75% training (30 s)",
    ]
