"""Options that count steps take shares of the run, and say when nothing comes of them."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import pytest
from expected import MECHANISMS
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from sae_plugins import Plugin, hookimpl
from sae_plugins.framework.registry import listing, load
from sae_plugins.framework.steps import InSteps, Steps, StepsOrShare, in_steps, schedule, share
from sae_plugins.testing import STEPS, train


class Options(Plugin.Options):
    start: Steps = Field(share(0.25))
    every: Annotated[StepsOrShare, InSteps(1, 50)] = 2
    stop: Steps | None = None
    weight: float = 0.5


class Counter(Plugin):
    name = "counter"
    Options = Options

    @hookimpl
    def attached(self) -> None:
        self.seen = self.options.model_dump()


@given(of_run=st.floats(0, 1, exclude_max=True), total=st.integers(1, 10**7))
def test_a_share_is_so_many_steps_of_the_run(of_run: float, total: int) -> None:
    options = in_steps(Options(start=of_run, every=of_run, stop=of_run), total)
    assert options.start == options.stop
    assert isinstance(options.start, int)
    assert 0 <= options.start <= total
    assert abs(options.start - of_run * total) <= 1
    assert (options.start == 0) == (of_run == 0)
    assert options.every == min(max(options.start, 1), 50)


@given(steps=st.integers(1, 50), total=st.integers(1, 1000))
def test_steps_stay_and_what_counts_none_stays(steps: int, total: int) -> None:
    options = in_steps(Options(start=steps, every=steps, stop=None), total)
    assert options.model_dump() == {"start": steps, "every": steps, "stop": None, "weight": 0.5}


def test_exact_shares_are_exact() -> None:
    assert [in_steps(Options(start=n / 100), 100).start for n in range(100)] == [*range(100)]


@pytest.mark.parametrize("value", [1.0, 1.5, 100.0, -1, -0.1, float("nan"), True, "5", [5]])
def test_what_is_neither_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="whole number of steps, at least 0, or a share"):
        Options(start=value)
    with pytest.raises(ValidationError, match="whole number of steps, from 1 to 50, or a share"):
        Options(every=value)


def test_a_plugin_sees_steps_and_the_sae_says_what_was_given() -> None:
    trainer = train(Counter, options={"counter": {"stop": 0.5}})
    expected = {"start": STEPS // 4, "every": 2, "stop": STEPS // 2, "weight": 0.5}
    assert trainer.run.plugin("counter").seen == expected
    (given_options,) = (p["options"] for p in trainer.sae.cfg.metadata.sae_plugins["plugins"])
    assert given_options == {"start": 0.25, "every": 2, "stop": 0.5, "weight": 0.5}


OURS = [line.name for line in listing() if line.kind == "mechanism"]


@pytest.mark.parametrize("name", OURS)
def test_by_default_every_mechanism_acts_in_a_short_run(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The simplest command does something, however short its run."""
    architecture = MECHANISMS[name].architecture
    options = {name: {"target": 1.0}} if name.startswith("coact") else {}
    with caplog.at_level(logging.WARNING):
        train(name, architecture=architecture, steps=20, options=options)
    assert "does nothing" not in caplog.text
    assert "will" not in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("reorder", {"start": 50}, "reorder does nothing in this run, which has 12 steps"),
        ("reorder", {"interval": 50, "adaptive": False}, "it would begin at step 50"),
        ("merge", {"every": 10, "stop": 9}, "at step 10 and stops after step 9"),
        ("merge", {"every": 13, "stop": None}, "it would begin at step 13"),
        ("resample", {"stop": 0}, "and stops after step 0"),
        ("importance-lr", {"start": 13}, "importance-lr does nothing"),
        ("activation-threshold", {"start": 13}, "activation-threshold does nothing"),
        ("decoder-orthogonality", {"every": 13}, "decoder-orthogonality does nothing"),
    ],
)
def test_what_never_comes_is_said_once(
    name: str, options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(name, options={name: options})
    assert [said in record.getMessage() for record in caplog.records].count(True) == 1
    assert load(name).Options(**options).model_dump().items() >= options.items()


class Periodic(Plugin.Options):
    interval: Steps = 10
    start: Steps = share(0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(start=5, every=10, stop=40), "every 10 steps, first at step 10, last at step 40"),
        (Options(start=25, every=10), "every 10 steps, first at step 30, last at step 100"),
        (Options(start=0.1, every=1, stop=0.5), "every step, first at step 10, last at step 50"),
        (Options(start=0, every=1, stop=900), "every step, first at step 1, last at step 100"),
        (Options(start=95, every=50), "at step 100"),
        (Options(start=101, every=1), "never"),
        (Options(start=20, every=20, stop=10), "never"),
        (Periodic(), "every 10 steps, first at step 50, last at step 100"),
        (Periodic(interval=0), "at no step of its own"),
        (Plugin.Options(), None),
    ],
)
def test_when_a_plugin_acts(options: Any, said: str | None) -> None:
    assert schedule(options, 100) == said


def test_the_schedule_is_what_the_mechanisms_do() -> None:
    merge, reorder = load("merge"), load("reorder")
    assert schedule(merge.Options(every=3, stop=8), STEPS) is not None
    assert schedule(reorder.Options(), 10) is not None
