"""The cache: an entry is whole or not there, and the folder does not grow beyond its limit."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_plugins.base.code import EVALUATING, code
from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.eval_suites.inputs import cache as module
from sae_plugins.eval_suites.inputs.cache import Cache, default_folder

KEY = fingerprint("a key")


def entry(value: float = 1.0, numbers: int = 10) -> Any:
    return {"acts": torch.full((numbers,), value)}, {"words": "é\n"}


def never() -> Any:
    raise AssertionError("computed, though it is there")


def files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path.parent.name != "in-use")


# -- what comes back -------------------------------------------------------------------------------


def test_an_entry_is_computed_once_and_comes_back_as_it_was(tmp_path):
    tensors = {
        "bfloat16": torch.randn(3, 2, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "a view": torch.arange(6).reshape(2, 3).T,
        "with gradient": torch.randn(2, requires_grad=True),
    }
    cache = Cache(tmp_path)
    assert cache.get("kind", KEY, lambda: (tensors, {"t": "x"}))[0] is tensors
    read, texts = Cache(tmp_path).get("kind", KEY, never)
    assert texts == {"t": "x"}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor), name
        assert read[name].dtype == tensor.dtype
    assert [file.parent.name for file in files(tmp_path)] == ["kind"]


def test_texts_alone_are_an_entry(tmp_path):
    cache = Cache(tmp_path)
    cache.get("kind", KEY, lambda: ({}, {"t": "x"}))
    assert cache.get("kind", KEY, never) == ({}, {"t": "x"})


def test_kinds_and_keys_are_apart(tmp_path):
    cache = Cache(tmp_path)
    for value, (kind, key) in enumerate([("a", "k"), ("a", "l"), ("b", "k")]):
        cache.get(kind, key, lambda v=value: entry(v))
    assert cache.get("a", "l", never)[0]["acts"][0] == 1
    assert cache.get("b", "k", never)[0]["acts"][0] == 2


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sae-plugins" / "evaluation"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "sae-plugins" / "evaluation"


# -- whole or not there ----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "one byte less"])
def test_a_damaged_file_is_computed_anew(tmp_path, damage):
    cache = Cache(tmp_path)
    cache.get("kind", KEY, entry)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    damaged = {"truncated": content[:20], "empty": b"", "garbage": b"\xff" * len(content)}
    file.write_bytes(damaged.get(damage, content[:-1]))
    assert cache.get("kind", KEY, lambda: entry(2.0))[0]["acts"][0] == 2
    assert cache.get("kind", KEY, never)[0]["acts"][0] == 2
    assert files(tmp_path) == [file]


def test_one_flipped_bit_anywhere_is_seen_and_named(tmp_path, caplog):
    cache, rng = Cache(tmp_path), random.Random(0)
    cache.get("kind", KEY, entry)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    places = [*rng.sample(range(len(content)), 25), *range(len(content) - 8, len(content))]
    for place in places:
        caplog.clear()
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        tensors, texts = cache.get("kind", KEY, entry)
        assert torch.equal(tensors["acts"], entry()[0]["acts"])
        assert texts == entry()[1]
        if file.read_bytes() == bytes(damaged):
            continue  # white space, say, that means the same
        assert f"{file} is damaged and is computed again" in caplog.text
        assert cache.get("kind", KEY, never)[1] == texts


def test_an_entry_of_other_code_is_not_used(tmp_path, monkeypatch):
    Cache(tmp_path).get("kind", KEY, entry)
    found = code(EVALUATING)
    assert "eval_suites/saebench/shared_model.py" in found

    def edited(patterns, suites=()):
        return {**code(patterns, suites), "eval_suites/saebench/shared_model.py": "another"}

    with monkeypatch.context() as patched:
        patched.setattr(module, "code", edited)
        assert Cache(tmp_path).get("kind", KEY, lambda: entry(2.0))[0]["acts"][0] == 2
    assert Cache(tmp_path).get("kind", KEY, never)[0]["acts"][0] == 1


def test_a_folder_in_its_place_does_no_harm(tmp_path):
    cache = Cache(tmp_path)
    (cache.path("kind", KEY) / "inside").mkdir(parents=True)
    for _ in range(2):
        assert cache.get("kind", KEY, entry)[0]["acts"][0] == 1
    assert not files(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["save_file", "replace"])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch, when, error):
    """A full disk costs nobody the value; an interruption goes on."""

    def failing(*arguments: Any) -> None:
        if when == "save_file":
            Path(arguments[1]).write_bytes(b"a part of it")
        raise error

    monkeypatch.setattr(safetensors.torch if when == "save_file" else os, when, failing)
    cache = Cache(tmp_path)
    if isinstance(error, OSError):
        assert cache.get("kind", KEY, entry)[0]["acts"][0] == 1
        assert not files(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            cache.get("kind", KEY, entry)
    monkeypatch.undo()
    assert cache.get("kind", KEY, lambda: entry(2.0))[0]["acts"][0] == 2


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert Cache(tmp_path / "file").get("kind", KEY, entry)[0]["acts"][0] == 1


def test_a_failing_computation_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError, match="computed"):
        Cache(tmp_path).get("kind", KEY, never)
    assert not files(tmp_path)


def in_a_process(work: Any) -> int:
    """The id of a process that does it, without importing everything again."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_write_the_same_entry_at_once(tmp_path, monkeypatch):
    folder, go = tmp_path / "cache", tmp_path / "go"
    own = safetensors.torch.save_file

    def save_file(*arguments: Any) -> None:
        (tmp_path / f"ready{os.getpid()}").touch()
        while not go.exists():
            time.sleep(0.01)
        own(*arguments)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    work = partial(Cache(folder).get, "kind", KEY, partial(entry, numbers=100_000))
    processes = [in_a_process(work) for _ in range(2)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready*"))) < 2:  # both are about to write
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go.touch()
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
    assert len(files(folder)) == 1
    assert (Cache(folder).get("kind", KEY, never)[0]["acts"] == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_file_system_that_takes_no_more(tmp_path):
    def work() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        found = Cache(tmp_path).get("kind", KEY, partial(entry, numbers=10_000))
        assert found[0]["acts"].sum() == 10_000

    assert os.waitpid(in_a_process(work), 0)[1] == 0
    assert not files(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_process_leaves_is_no_entry(tmp_path, monkeypatch):
    own = safetensors.torch.save_file

    def save_file(*arguments: Any) -> None:
        own(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    cache = Cache(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", save_file)
        _, status = os.waitpid(in_a_process(partial(cache.get, "kind", KEY, entry)), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [file.suffix for file in files(tmp_path)] == [".partial"]
    assert cache.get("kind", KEY, lambda: entry(2.0))[0]["acts"][0] == 2
    assert cache.get("kind", KEY, never)[0]["acts"][0] == 2


# -- its limit -------------------------------------------------------------------------------------


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))


def test_the_least_recently_used_go_first(tmp_path):
    cache = Cache(tmp_path, limit=3 * 4300)
    for number, key in enumerate("abc"):
        cache.get(f"kind{number}", key, lambda: entry(numbers=1000))
        os.utime(cache.path(f"kind{number}", key), (number, number))
    cache.get("kind0", "a", never)  # used just now
    cache.get("kind3", "d", lambda: entry(numbers=1000))
    assert files(tmp_path) == [
        cache.path("kind0", "a"), cache.path("kind2", "c"), cache.path("kind3", "d"),
    ]  # fmt: skip


@given(sizes=st.lists(st.integers(0, 3000), max_size=12), limit=st.integers(0, 20_000))
@settings(max_examples=30, deadline=None)
def test_the_folder_stays_within_its_limit(sizes, limit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(folder, limit)
    for number, numbers in enumerate(sizes):
        cache.get("kind", str(number), lambda n=numbers: entry(numbers=n))
        assert size(folder) <= limit


def test_what_is_larger_than_the_limit_costs_no_other_entry(tmp_path):
    cache = Cache(tmp_path, limit=10_000)
    cache.get("kind", "small", entry)
    cache.get("kind", "large", lambda: entry(numbers=10_000))
    cache.get("kind", "small", never)


def test_an_entry_that_another_process_removes_meanwhile(tmp_path, monkeypatch):
    cache = Cache(tmp_path, limit=1)
    own = Path.stat

    def stat(self: Path, **kwargs: Any) -> Any:
        if self.suffix == ".safetensors" and self.exists():
            self.unlink()
        return own(self, **kwargs)

    Cache(tmp_path).get("kind", "a", entry)
    monkeypatch.setattr(Path, "exists", lambda self: os.path.exists(self))
    monkeypatch.setattr(Path, "stat", stat)
    assert cache.get("kind", "b", entry)[0]["acts"][0] == 1


# -- fingerprints ----------------------------------------------------------------------------------


def test_equal_parts_have_equal_fingerprints():
    t = torch.arange(6.0)
    assert fingerprint(t) == fingerprint(t.clone().requires_grad_())
    assert fingerprint(t.reshape(2, 3).T) == fingerprint(t.reshape(2, 3).T.contiguous())
    assert fingerprint({"a": t, "b": 1}) == fingerprint({"b": 1, "a": t})
    assert fingerprint({"a": {"b": t}}) == fingerprint({"a": {"b": t}})
    assert len(fingerprint()) == 32


def test_other_parts_have_other_fingerprints():
    t = torch.arange(6)
    unequal = [
        (), (t,), (t.int(),), (t.float(),), (t.reshape(2, 3),), (t.reshape(3, 2),),
        (t.reshape(2, 3).T,), (t.flip(0),), (t, t), (t[:3], t[3:]), (t[3:], t[:3]), (t[:0],),
        ({"a": t},), ({"b": t},), ({"a": {"a": t}},), ({"a": t[:3], "b": t[3:]},),
        ({"b": t[:3], "a": t[3:]},), ({},), ("",), ("a", "b"), ("b", "a"), ("ab",), ("a\0b",),
        (None,), (0,), ("0",), (0.0,), (-0.0,), (False,), ((0,),), ([0],),
        (torch.tensor(0.0),), (torch.tensor(-0.0),), (torch.tensor([0.0]),), (torch.tensor(0),),
    ]  # fmt: skip
    assert len({fingerprint(*parts) for parts in unequal}) == len(unequal)


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    other=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
)
def test_a_fingerprint_tells_values_apart(values, other):
    a, b = (fingerprint(torch.tensor(numbers)) for numbers in (values, other))
    assert (a == b) == (values == other)


def test_a_fingerprint_is_the_same_in_every_process_and_version():
    parts = ({"b": torch.arange(3), "a": "x"}, [1, 2.5], None)
    assert fingerprint(*parts) == "197dc8ff3c681c0c112bad4f18e598a7"
