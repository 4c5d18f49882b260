"""Commands whose output nobody reads, or whose output's disk is full."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sae_plugins.base.patches import replaced
from sae_plugins.entrypoints import main as module
from sae_plugins.entrypoints.main import main


@contextmanager
def unread() -> Iterator[None]:
    """Standard output is a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, replaced(sys, stdout=stream):
        yield


def test_a_command_goes_on_where_nobody_reads_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done: list[int] = []

    def run(_: list[str]) -> int:
        for batch in range(3):
            print("batch", batch, flush=True)
            os.write(sys.stdout.fileno(), b"as a process writes")
            done.append(batch)
        return 7

    monkeypatch.setattr(module, "_run", run)
    with unread():
        assert main(["train"]) == 7
    assert done == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_list_that_nobody_reads_ends_quietly(capsys: pytest.CaptureFixture[str]):
    with unread():
        assert main(["plugins", "list"]) == 0
    assert capsys.readouterr() == ("", "")
    with unread():
        assert main(["plugins", "show", "reodrer"]) == 2
    assert "did you mean 'reorder'?" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_sentence(capsys: pytest.CaptureFixture[str]):
    with open("/dev/full", "w") as stream, replaced(sys, stdout=stream):
        assert main(["plugins", "list"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "sae-plugins plugins: error: standard output: no space left on device\n"
