"""A checkpoint of several ranks is all of its files, or none of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_plugins.base.errors import StateError
from sae_plugins.base.ranks import RankError, Ranks, join
from sae_plugins.framework.forked import on_ranks
from sae_plugins.resume import state
from sae_plugins.resume import written as module
from sae_plugins.resume.files import (
    FORMAT,
    checkpoint,
    files,
    newest,
    partial_files,
    remove,
    shard_of,
    shards_of,
)
from sae_plugins.resume.state import read_state, write_state
from sae_plugins.resume.written import read_shards, write_together

CONTENTS = ("facts", "versions", "notes", "random", "stream_facts", "provider", "trainers")
V = 4


def tree(ranks: Ranks, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    main = {"format": FORMAT, "stream": {"shards": V}, **dict.fromkeys(CONTENTS), "step": step}
    each = V // ranks.size
    own = range(ranks.rank * each, (ranks.rank + 1) * each)
    return main, {str(k): {"rows": torch.full((2,), k + step)} for k in own}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def whole(step: int) -> list[str]:
    name = f"step-{step:09d}"
    return sorted([f"{name}.safetensors", *(f"{name}.shard{k}.safetensors" for k in range(V))])


def write(folder: Path, step: int, ranks: Ranks) -> str | None:
    return write_together(checkpoint(folder, step), lambda: tree(ranks, step), ranks)


@pytest.mark.parametrize(
    "size", [2, *(pytest.param(size, marks=pytest.mark.ci) for size in (1, 4))]
)
def test_every_rank_writes_its_shards_and_rank_0_the_main_file(size: int, tmp_path: Path) -> None:
    order = tmp_path / "order.txt"

    def act() -> str | None:
        own = module.write_state

        def noted(path: Path, state: Any) -> None:
            own(path, state)
            with order.open("a") as file:
                file.write(f"{path.name}\n")

        module.write_state = noted
        return write(tmp_path, 2, join(30))

    assert on_ranks(size, act) == [None] * size
    *shards, last = order.read_text().split()
    assert last == "step-000000002.safetensors"
    order.unlink()
    assert names(tmp_path) == whole(2) == sorted([*shards, last])
    path, found = newest(tmp_path)
    assert (path, found["step"]) == (checkpoint(tmp_path, 2), 2)
    assert read_shards(path, [1])["1"]["rows"].tolist() == [3, 3]


def full(shard: int | None) -> Callable[[Path, Any], None]:
    """A disk that takes nothing more when this shard is to be written, or the main file."""
    names = {shard_of(checkpoint(Path(), 4), k).name: k for k in range(V)}

    def writing(path: Path, state: Any) -> None:
        if path.name.startswith("step-000000004") and names.get(path.name) == shard:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_state(path, state)

    return writing


@pytest.mark.parametrize(
    "shard", [3, *(pytest.param(shard, marks=pytest.mark.ci) for shard in (0, None))]
)
def test_a_full_disk_on_any_rank_leaves_the_checkpoint_before(
    shard: int | None, tmp_path: Path
) -> None:
    def act() -> list[str | None]:
        ranks = join(30)
        found = [write(tmp_path, 2, ranks)]
        module.write_state = full(shard)
        found.append(write(tmp_path, 4, ranks))
        module.write_state = write_state
        found.append(write(tmp_path, 6, ranks))
        return found

    assert on_ranks(2, act) == [[None, "No space left on device", None]] * 2
    assert names(tmp_path) == sorted([*whole(2), *whole(6)])


def test_what_cannot_be_saved_on_one_rank_is_told_to_all(tmp_path: Path) -> None:
    def act() -> str | None:
        ranks = join(30)

        def made() -> Any:
            main, parts = tree(ranks, 2)
            if ranks.rank:
                parts["3"] = {"rows": object()}
            return main, parts

        return write_together(checkpoint(tmp_path, 2), made, ranks)

    for reason in on_ranks(2, act):
        assert reason is not None
        assert "no checkpoint can be made of rows" in reason
    assert names(tmp_path) == []


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with checkpoints after 2 and 4 steps."""
    for step in (2, 4):
        assert write(tmp_path, step, Ranks()) is None
    return tmp_path


def break_(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (os.unlink, "cannot be read"),
        (break_, "is damaged"),
        (lambda path: os.truncate(path, 20), "cannot be read"),
    ],
)
@pytest.mark.parametrize("k", [0, 3])
def test_a_shard_that_is_damaged_or_missing_is_a_checkpoint_that_is(
    harm: Any, said: str, k: int, two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harm(shard_of(checkpoint(two, 4), k))
    path, found = newest(two)
    assert (path, found["step"]) == (checkpoint(two, 2), 2)
    assert f"step-000000004.shard{k}.safetensors" in caplog.text
    assert said in caplog.text
    assert "going on from the one before it, step-000000002.safetensors" in caplog.text
    harm(shard_of(path, k))
    with pytest.raises(StateError, match="Nothing can be resumed: start the run again"):
        newest(two)


def test_ranks_share_the_reading_and_skip_what_is_damaged_for_one(two: Path) -> None:
    break_(shard_of(checkpoint(two, 4), 3))

    def act() -> tuple[int, list[str]]:
        ranks, read = join(30), []
        own = state.read_state
        state.read_state = lambda path: (read.append(path.name), own(path))[1]
        path, found = newest(two, ranks)
        assert path == checkpoint(two, 2)
        return found["step"], read

    first, second = on_ranks(2, act)
    assert first[0] == second[0] == 2
    for (_, read), shards in ((first, (0, 2)), (second, (1, 3))):
        assert read == [
            name
            for step in (4, 2)
            for name in (
                checkpoint(two, step).name,
                *(shard_of(checkpoint(two, step), k).name for k in shards),
            )
        ]


def test_ranks_say_the_same_where_nothing_is_whole_for_one(two: Path) -> None:
    for step in (2, 4):
        os.unlink(shard_of(checkpoint(two, step), 1))

    def act() -> str:
        with pytest.raises(StateError) as caught:
            newest(two, join(30))
        return str(caught.value)

    first, second = on_ranks(2, act)
    assert first == second
    assert "shard1" in first


def test_an_error_of_another_kind_on_one_rank_ends_both(two: Path) -> None:
    def act() -> tuple[str, ...]:
        ranks = join(30)
        if ranks.rank:
            state.read_state = None
        with pytest.raises(RankError) as caught, ranks.together():
            newest(two, ranks)
        return tuple(map(str, caught.value.args))

    assert on_ranks(2, act) == [
        ("rank 1: TypeError: 'NoneType' object is not callable",),
        (),
    ]


def test_what_a_killed_rank_has_left_is_partial_and_goes(two: Path) -> None:
    assert partial_files(two) == []
    left = [
        shard_of(checkpoint(two, 6), 0),  # the main file never came
        shard_of(checkpoint(two, 6), 3),
        two / "step-000000006.shard1.safetensors.partial",
        two / "step-000000006.safetensors.partial",
    ]
    somebodys = [two / "step-1.shard0.txt", two / "step-2.safetensors.bak", two / "notes.txt"]
    for path in [*left, *somebodys]:
        path.touch()
    assert {*partial_files(two)} == {*left}
    assert files(two) == [checkpoint(two, 4), checkpoint(two, 2)]


def test_an_old_checkpoint_goes_with_its_shards_the_main_file_first(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    own = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **kwargs: (gone.append(path.name), own(path, **kwargs))[1]
    )
    remove(checkpoint(two, 2))
    assert gone[0] == "step-000000002.safetensors"
    assert sorted(gone) == whole(2)
    assert names(two) == whole(4)
    assert shards_of(checkpoint(two, 2)) == []


def test_the_shards_of_ten_and_more_are_their_own_checkpoints(tmp_path: Path) -> None:
    for step in (1, 11):
        for k in (1, 10):
            write_state(shard_of(checkpoint(tmp_path, step), k), {"k": k})
    assert len(shards_of(checkpoint(tmp_path, 1))) == 2
    assert read_state(shard_of(checkpoint(tmp_path, 11), 10))["k"] == 10
