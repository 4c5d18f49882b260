"""`sae-plugins cache`: what is listed, and what goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_plugins.base import kept
from sae_plugins.base.fingerprints import of_value
from sae_plugins.base.kept import InUse, kinds_in_use
from sae_plugins.entrypoints.main import main
from sae_plugins.eval_suites.inputs.cache import Cache

DAY = 24 * 60 * 60
STREAM = "activations-0123"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three batches of a run, of which one is old, and what an evaluation keeps."""
    for number, days in enumerate((0, 5, 40)):
        path = tmp_path / STREAM / f"{of_value(number)}.safetensors"
        kept.write(path, ({"acts": torch.zeros(1000)}, {}), "a model, a hook, a text")
        os.utime(path, (time.time() - days * DAY - 60,) * 2)
    cache = Cache(tmp_path, about="another model, its hook")
    cache.get("first_letter_probes", "key", lambda: ({"w": torch.zeros(10)}, {}))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *line: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["cache", *line]) == code
    out, err = capsys.readouterr()
    return " ".join((err if code else out).split())


def there(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_entries_are_listed_by_what_they_are_made_from(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, "list", str(folder))
    assert shown.startswith(f"{folder}: 12.8 KB, 4 entries")
    assert "12.6 KB 3 entries used 1 minute ago activations of a model, a hook, a text" in shown
    assert "1 entry used just now probes for first letters of another model, its hook" in shown


def test_the_users_own_folder_is_listed_where_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    assert said(capsys, "list") == ""
    own = folder / "home" / "sae-plugins" / "evaluation"
    Cache(own, about="a model").get("probes", "key", lambda: ({}, {"a": "b"}))
    assert f"{own}: " in said(capsys, "list")
    assert "probes of a model" in said(capsys, "list")
    assert "1 entry" in said(capsys, "prune", "--all")
    assert not there(own)


@pytest.mark.parametrize(
    ("flags", "gone"),
    [
        ("--older_than 30", {2}),
        ("--older_than 1", {1, 2}),
        ("--down_to 9KB", {2}),
        ("--down_to 9KB --older_than 4.5", {1, 2}),
        ("--down_to 1TB", set()),
        ("--all", {0, 1, 2, "probes"}),
        ("--unreadable", set()),
        ("--older_than 0", {0, 1, 2, "probes"}),
    ],
)
def test_what_is_chosen_goes(
    flags: str, gone: set[object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = there(folder)
    count = f"{len(gone)} entr{'y' if len(gone) == 1 else 'ies'}"
    assert f"would be removed: {count}" in said(
        capsys, "prune", str(folder), *flags.split(), "--dry_run"
    )
    assert there(folder) == before
    assert f"removed: {count}" in said(capsys, "prune", str(folder), *flags.split())
    left = there(folder)
    names = {number: f"{STREAM}/{of_value(number)}.safetensors" for number in range(3)}
    assert {n for n, name in names.items() if name not in left} == gone - {"probes"}
    assert any("probes" in name for name in left) == ("probes" not in gone)
    assert folder.is_dir()
    assert all(any(place.iterdir()) for place in folder.iterdir())  # no empty folder is left


def test_what_is_damaged_goes_and_files_of_others_stay(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [folder / STREAM / "mine.safetensors", folder / STREAM / f"{'a' * 32}.safetensors"]
    for other in others:
        save_file({"a": torch.zeros(1)}, other)
    (folder / "notes.txt").write_text("mine")
    (folder / "models").mkdir()
    others += [folder / "models" / name for name in (f"{'d' * 32}.safetensors", ".tmp12abCD")]
    for other in others[-2:]:  # which look like a damaged entry, and what a killed process leaves
        other.write_text("mine")
        os.utime(other, (0, 0))
    left = folder / STREAM / f"{'b' * 32}.safetensors.{'c' * 32}.partial"
    left.write_bytes(b"half")
    cut, flipped, _ = (folder / STREAM / f"{of_value(n)}.safetensors" for n in range(3))
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    assert "1 entry used just now unreadable" in said(capsys, "list", str(folder))
    assert "removed: 2 entries" in said(capsys, "prune", str(folder), "--unreadable")
    assert not cut.exists()
    assert not flipped.exists()
    os.utime(left, (time.time() - 2 * DAY,) * 2)  # a process that writes it is no more
    assert "removed: 1 entry" in said(capsys, "prune", str(folder), "--unreadable")
    said(capsys, "prune", str(folder), "--all")
    assert there(folder) == [*sorted(str(path.relative_to(folder)) for path in others), "notes.txt"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("prune", "say what is to go: --older_than, --down_to, --unreadable, --all"),
        ("prune --down_to much", "--down_to: 'much' is no size: give one such as 50GB"),
        ("prune --older_than -1", "--older_than: it must be at least 0"),
        ("prune --older_than x", "--older_than 'x': it must be a number or none"),
        ("prune --all --older_than 3", "--all removes what --older_than would keep"),
        ("list ~no-such-user/a", "~no-such-user/a: no such user has a home folder here"),
        ("prune nowhere --all", "nowhere: there is no such folder"),
        ("list nowhere", "nowhere: there is no such folder"),
    ],
)
def test_what_is_wrong_is_said(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, *line.split(), code=2)
    assert sentence in shown
    assert ("say what is to go" in shown) == ("say what is to go" in sentence)


def test_what_a_process_uses_stays_until_it_has_ended(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = STREAM
    in_use = InUse(folder)
    in_use.add(kind)
    assert kinds_in_use(folder) == {kind}
    text = said(capsys, "prune", str(folder), "--all")
    assert "stay: a process uses them; prune again when it has ended" in text
    assert len([path for path in there(folder) if path.startswith(kind)]) == 3
    assert not [path for path in there(folder) if path.startswith("first_letter_probes")]
    del in_use
    said(capsys, "prune", str(folder), "--all")
    assert not there(folder)
    assert not (folder / "in-use").exists()


def test_a_process_that_was_killed_keeps_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use = (
        "import os, pathlib; from sae_plugins.base.kept import InUse; "
        f"InUse(pathlib.Path({str(folder)!r})).add({STREAM!r}); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", use]).returncode == 9
    said(capsys, "prune", str(folder), "--all")
    assert not [path for path in there(folder) if path.endswith(".safetensors")]


def test_a_folder_that_takes_nothing_is_used_without_a_word(folder: Path) -> None:
    (folder / "in-use").write_text("")  # so that there can be no such folder
    InUse(folder).add("probes")
    assert kinds_in_use(folder) == set()
