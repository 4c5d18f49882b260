"""How long a run takes, from what a few of its steps took."""

from __future__ import annotations

import pytest

from sae_plugins.framework.profile import Part, Spent
from sae_plugins.runs.probe import WARM_UP, Speed, _Mark, _speed

MIXING, MODEL = ("batches", "mixing buffer"), ("batches", "language model")
STEP, SAVED = ("SAE step", "backward"), ("checkpoints", "SAELens'")


def marks(each: dict[Part, list[int]], tokens: int = 10) -> list[_Mark]:
    """What was measured after each step: of each part, what every step took in milliseconds."""
    steps = len(next(iter(each.values())))
    found = []
    for step in range(1, steps + 1):
        spent = {
            part: Spent(sum(took[:step]) * 10**6, sum(map(bool, took[:step])))
            for part, took in each.items()
            if any(took[:step])
        }
        found.append(_Mark(spent, tokens * step))
    return found


def test_the_warm_up_does_not_count():
    slow = [900] * WARM_UP
    found = _speed(marks({STEP: [*slow, 4, 6], MIXING: [*slow, 10, 30]}), 20, {})
    assert found.steps == 2
    assert found.step == {"SAE step": pytest.approx(0.005)}
    assert found.batch == {"mixing buffer": pytest.approx(0.040 / 20)}
    assert found.seconds(100, 1000) == pytest.approx(0.5 + 2)


def test_a_model_s_batches_count_one_by_one():
    found = _speed(marks({STEP: [1] * 5, MODEL: [900, 0, 0, 40, 0]}), 40, {})
    assert found.batch == {"language model": pytest.approx(0.001)}


def test_a_batch_that_serves_all_steps_counts_though_it_is_the_first():
    found = _speed(marks({STEP: [1] * 5, MODEL: [400, 0, 0, 0, 0]}), 4000, {})
    assert found.batch == {"language model": pytest.approx(0.0001)}


def test_what_comes_now_and_then_is_no_part_of_a_step():
    assert _speed(marks({STEP: [1] * 5, SAVED: [0, 0, 0, 500, 0]}), 1, {}).step.keys() == {
        "SAE step"
    }


@pytest.mark.parametrize("steps", [2, WARM_UP, WARM_UP + 1])
def test_few_steps_are_better_than_none(steps: int):
    found = _speed(marks({STEP: [8] + [2] * (steps - 1)}), 1, {})
    assert found.steps == max(1, steps - WARM_UP)
    assert found.step["SAE step"] == pytest.approx(0.002)


def test_the_parts_of_a_step_add_up():
    speed = Speed(1, {"text": 0.1}, {"SAE step": 2.0}, {})
    assert speed.per_step(5) == {"text": 0.5, "SAE step": 2.0}
    assert speed.seconds(1, 5) == pytest.approx(sum(speed.per_step(5).values()))
