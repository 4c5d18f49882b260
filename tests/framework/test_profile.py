"""Where the time goes: parts within parts, which add up to the whole by construction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch

import sae_plugins
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.profile import OTHER, Profile
from sae_plugins.testing import tiny_batches, tiny_sae, tiny_trainer

A, B = ("a", ""), ("b", "")


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 5

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def profile(clock: Clock) -> Profile:
    return Profile(clock)


def spent(profile: Profile) -> dict[Any, int]:
    return {part: each.nanoseconds for part, each in profile.spent.items()}


def test_time_counts_once_for_the_innermost_part(profile: Profile, clock: Clock):
    clock.now += 1
    with profile.part(A):
        clock.now += 10
        with profile.part(B):
            clock.now += 100
        clock.now += 1000
        with profile.part(A):
            clock.now += 10_000
    clock.now += 100_000
    found = profile.as_json()
    assert spent(profile) == {A: 11_010, B: 100, OTHER: 100_001}
    assert {part: each.calls for part, each in profile.spent.items()} == {A: 2, B: 1, OTHER: 0}
    assert found["seconds"] == pytest.approx(111_111e-9)
    assert sum(row["seconds"] for row in found["parts"]) == pytest.approx(found["seconds"])


def test_a_whole_part_has_no_parts_inside(profile: Profile, clock: Clock):
    with profile.part(A, whole=True):
        with profile.part(B):
            clock.now += 7
        clock.now += 1
    assert spent(profile)[A] == 8
    assert B not in profile.spent


@pytest.mark.parametrize("error", [ValueError, StopIteration])
def test_a_part_that_fails_ends_there(profile: Profile, clock: Clock, error: type[Exception]):
    def fail() -> None:
        clock.now += 3
        raise error("so")

    with pytest.raises(error, match="so"):
        profile.timed(A, fail)()
    clock.now += 4
    profile.as_json()
    assert spent(profile) == {A: 3, OTHER: 4}


def test_other_threads_are_not_counted(profile: Profile, clock: Clock):
    def work() -> None:
        with profile.part(B):
            clock.now += 5

    thread = threading.Thread(target=work)
    with profile.part(A):
        thread.start()
        thread.join()
    assert spent(profile)[A] == 5
    assert B not in profile.spent


# -- a training ------------------------------------------------------------------------------------


class Keeper(Plugin):
    """Keeps a tensor, another view of it, and one deep inside."""

    name = "keeper"

    @hookimpl
    def attached(self, run: Any) -> None:
        self.kept = torch.zeros(100)
        self.view = self.kept[:50]
        self.inside = {"deep": [torch.zeros(10, dtype=torch.float64)]}

    @hookimpl
    def before_update(self, run: Any) -> None: ...


def trained(profile: Profile | None, *plugins: Any, **settings: Any) -> Any:
    with sae_plugins.plugins(*plugins, seed=3, profile=profile, **settings):
        trainer = tiny_trainer(tiny_sae("standard"), tiny_batches())
        trainer.fit()
    return trainer


@pytest.mark.parametrize(
    ("names", "training"), [((), {}), ((), {"fast_step": True}), ((Keeper,), {})]
)
def test_the_parts_of_a_step_are_counted(names: tuple[Any, ...], training: dict[str, Any]):
    profile = Profile(count().__next__)
    trainer = trained(profile, *names, training=training)
    for detail in ("forward", "backward", "optimizer"):
        assert profile.spent["SAE step", detail].calls == trainer.n_training_steps
    assert profile.spent["SAE step", "forward"].nanoseconds


def test_events_are_counted():
    profile = Profile(count().__next__)
    trainer = trained(profile, Keeper)
    calls = {part: each.calls for part, each in profile.spent.items()}
    assert calls["keeper", "attached"] == 1
    assert calls["keeper", "before_update"] == trainer.n_training_steps
    assert profile.held["keeper"] == 100 * 4 + 10 * 8
    parameters = sum(parameter.numel() for parameter in trainer.sae.parameters())
    assert profile.held["SAE and Adam's moments"] >= 3 * 4 * parameters


def test_a_profile_leaves_the_weights_as_they_are():
    plain, profiled = (trained(each, "reorder", Keeper).sae for each in (None, Profile()))
    for one, other in zip(plain.parameters(), profiled.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_a_profile_nothing_stands_in_the_way():
    trainer = trained(None, Keeper)
    calls = [call for pairs in trainer.host._callers.values() for _, call in pairs]
    assert all(not hasattr(call, "__wrapped__") for call in calls)
    assert not {"step", "save_checkpoint", "set_final_sae_metadata"} & {*vars(trainer)}


def test_afterwards_everything_is_as_it_was():
    from sae_lens.training.activations_store import ActivationsStore

    def state() -> Iterator[Any]:
        yield torch.Tensor.backward
        yield from (vars(ActivationsStore)[name] for name in ("__next__", "get_activations"))

    before = deque(state())
    trained(Profile(), Keeper)
    assert deque(state()) == before


# -- memory on CUDA --------------------------------------------------------------------------------


class Device:
    """Counts as torch.cuda does, of a device that nobody needs to have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = self.peak = self.waits = 0
        for name in (
            *("synchronize", "memory_allocated", "max_memory_allocated"),
            "reset_peak_memory_stats",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def take(self, count: int) -> None:
        self.here += count
        self.peak = max(self.peak, self.here)

    def synchronize(self, _: Any) -> None:
        self.waits += 1

    def memory_allocated(self, _: Any) -> int:
        return self.here

    def max_memory_allocated(self, _: Any) -> int:
        return self.peak

    def reset_peak_memory_stats(self, _: Any) -> None:
        self.peak = self.here


def test_a_part_s_peak_is_above_what_was_there_and_has_those_inside(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
):
    with sae_plugins.plugins():
        trainer: Any = tiny_trainer(tiny_sae("standard"), tiny_batches())
    device = Device(monkeypatch)
    trainer.sae.device = torch.device("cuda")
    profile.watch(trainer)
    device.take(1000)
    with profile.part(A):
        device.take(50)
        device.take(-30)
        with profile.part(B):
            device.take(200)
            device.take(-190)
        device.take(5)
    with profile.part(B):
        device.take(7)
    rows = {row["part"]: row["peak_bytes"] for row in profile.as_json()["parts"]}
    assert (rows["a"], rows["b"]) == (220, 200)
    assert device.waits == 7  # twice a part, and at the end
