"""What is written is whole or absent, and on the disk before anything gives way to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base import files
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.files import durable, whole, write


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is flushed and moved, in its order."""
    said: list[str] = []

    def flushing(path: Path) -> None:
        said.append(f"flush {path.relative_to(tmp_path)}")

    def replacing(source: Any, target: Any, replace: Any = os.replace) -> None:
        said.append(f"replace {Path(target).relative_to(tmp_path)}")
        replace(source, target)

    monkeypatch.setattr(files, "_flush", flushing)
    monkeypatch.setattr(os, "replace", replacing)
    return said


def test_a_file_is_flushed_before_it_has_its_name(tmp_path: Path, done: list[str]) -> None:
    write(tmp_path / "a.json", "{}")
    assert done == ["flush a.json.partial", "replace a.json", "flush ."]
    assert (tmp_path / "a.json").read_text() == "{}"


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "old")
    with pytest.raises(TypeError), whole(tmp_path / "a.json") as partial:
        partial.write_bytes("half")  # which opens it
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_whoever_may_read_new_files_may_read_what_a_library_wrote(
    tmp_path: Path, mode: int
) -> None:
    before = os.umask(0o666 & ~mode)
    try:
        with whole(tmp_path / "a") as partial:
            other = tmp_path / "other"
            os.close(os.open(other, os.O_CREAT, 0o600))  # as safetensors does
            os.replace(other, partial)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("names", [None, ["b/c/two", "one"]])
def test_files_are_flushed_with_all_their_names(
    names: list[str] | None, tmp_path: Path, done: list[str]
) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/one").touch()
    (tmp_path / "a/b/c/two").touch()
    durable(tmp_path / "a", names)
    expected = ["a/one", "a/b/c/two", "a", "a/b", "a/b/c", "."]
    assert sorted(done) == sorted(f"flush {name}" for name in expected)


@pytest.mark.parametrize(("code", "raised"), [(errno.EINVAL, False), (errno.ENOSPC, True)])
def test_a_disk_that_cannot_flush_is_no_full_disk(
    code: int, raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refused)
    if raised:
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "a", "text")
        assert list(tmp_path.iterdir()) == []
    else:
        write(tmp_path / "a", "text")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50GB", 50 * 10**9), ("1.5 tb", 1_500_000_000_000), ("20 MB", 20_000_000), ("7", 7),
     ("3B", 3), ("2K", None), ("-1GB", None), ("GB", None), ("", None), ("1GiB", None)],
)  # fmt: skip
def test_sizes_as_people_write_them(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(SaePluginsError, match="is no size: give one such as 50GB"):
            files.bytes_in(text)
    else:
        assert files.bytes_in(text) == expected
        assert files.bytes_in(files.size(expected).replace("bytes", "B")) == expected
