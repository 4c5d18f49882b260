"""`sae-plugins study run` on two ranks: what stops one is said once, and by all exit codes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from ranked import Said, command

from sae_plugins.base import ranks
from sae_plugins.base.errors import Paused, SaePluginsError

STUDY: dict[str, Any] = {
    "description": "Does TopK help?",
    "reference": "l1",
    "models": {
        "toy": {
            "train": {**toys.TRAIN, "data_shards": 2},
            "sparsity": {"l1_coefficient": [0.3], "k": [16]},
            "suites": toys.SUITES,
        }
    },
    "arms": {"l1": {"kind": "baseline"}, "topk": {"train": {"architecture": "topk"}}},
    "seeds": [0, 1],
}


@pytest.fixture(scope="module")
def imported() -> None:
    """What ranks need: they are forked from this process, and import it in no time then."""
    for name in ("runs.synthetic", "study.execute", "study.gather", "eval_suites.ground_truth"):
        importlib.import_module(f"sae_plugins.{name}")


@pytest.fixture(autouse=True)
def file(imported: None, sketched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_GRACE", 1.0)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY))


def failing(rank: int, place: str, number: int, error: BaseException) -> Callable[[int], list[str]]:
    """The command, with a function of which so manyth call fails on a rank."""

    module, _, name = place.rpartition(".")
    owner = importlib.import_module(f"sae_plugins.{module}")
    function, calls = getattr(owner, name), []

    def words(own: int) -> list[str]:

        def counted(*given: Any, **named: Any) -> Any:
            calls.append(None)
            if len(calls) == number and own == rank:
                raise error
            return function(*given, **named)

        setattr(owner, name, counted)
        return ["study", "run", "mine.yaml", "--underpowered", "--output_path", "out"]

    return words


def said(found: list[Any]) -> list[str]:
    """What the command itself says in the end, on all ranks together."""
    assert all(isinstance(one, Said) for one in found), found
    lines = [line for one in found for line in one.err.splitlines()]
    return [line for line in lines if line.startswith("sae-plugins study: ")]


@pytest.mark.ci
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", [("runs.lockstep._step", 7), ("study.work.evaluate", 1)])
def test_a_pause_of_one_rank_is_one_of_all(rank: int, place: tuple[str, int]) -> None:
    found = command(failing(rank, *place, Paused()), 2)
    # one that pauses alone waits for rank 0 to say so, and not for long
    assert {*said(found)} == {"sae-plugins study: paused; the same command goes on from there"}
    assert [one.code for one in found] == [75, 75]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("rank", "place", "message"),
    [
        (0, ("study.work.evaluate", 1), "rank 0: a fault"),
        (1, ("study.work.evaluate", 1), "rank 1: a fault"),
        (0, ("runs.lockstep._step", 7), "a fault"),  # while others wait for it
        (1, ("runs.lockstep._step", 7), "rank 1 stopped: a fault"),
    ],
)
def test_what_fails_on_a_rank_is_said_once(rank: int, place: tuple[str, int], message: str) -> None:
    found = command(failing(rank, *place, SaePluginsError("a fault")), 2)
    assert said(found) == [f"sae-plugins study: error: {message}"]
    assert [one.code for one in found] == [1, 1]
