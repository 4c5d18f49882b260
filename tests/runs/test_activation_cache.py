"""Kept activations: bitwise those of the language model, said before and within the budget."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import pytest
import safetensors.torch
import torch
import yaml
from sae_lens.training.activations_store import ActivationsStore
from tqdm.auto import tqdm

from sae_plugins.base import kept
from sae_plugins.base.errors import PluginError
from sae_plugins.base.kept import Folder
from sae_plugins.entrypoints.main import main
from sae_plugins.resume.files import files as checkpoints_in
from sae_plugins.runs import activation_cache, machine
from sae_plugins.runs.activation_cache import ActivationCache, Harvest, harvests, plan
from sae_plugins.runs.folder import OUR_CHECKPOINTS, UNFINISHED
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settle import settle

FORK = multiprocessing.get_context("fork")
RUN = [
    *("--training_tokens", "1600", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "250", "--recorder.every", "1"),
    *("--checkpoint_every", "3"),
]
CACHE = ["--activation_cache", "cache"]


@pytest.fixture(autouse=True)
def folder(tiny_world: Any, sketched: None, tmp_path: Path) -> Path:
    """An empty working directory, and a tiny model for the embedded world."""
    return tmp_path


def train(output: str, *arguments: str, code: int = 0) -> Path:
    assert main(["train", *RUN, "--output_path", output, *arguments]) == code
    return Path(output)


def contents(run: str) -> dict[str, Any]:
    """What a run leaves, without times and its place."""
    return faults.contents(Path(run), "_path")


def files() -> list[Path]:
    found = (path for path in Path("cache").rglob("*") if path.is_file())
    return sorted(path for path in found if path.parent.name != "in-use")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, no text may be given to the language model."""

    def run(*_: Any) -> None:
        raise AssertionError("the language model was run")

    return lambda: monkeypatch.setattr(ActivationsStore, "get_activations", run)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        *(
            pytest.param(flags, marks=mark)
            for flags, mark in {
                "--prefetch_llm_batches true": pytest.mark.ci,
                "--exclude_special_tokens 1 2 3 4 5": pytest.mark.ci,
                "--seqpos_slice 1 -1": pytest.mark.slow,
                "--hook_name blocks.1.attn.hook_z --hook_head_index 1": pytest.mark.slow,
                "--architecture batchtopk --k 4": pytest.mark.slow,
                "--training_tokens 24k": pytest.mark.slow,  # five times the text
            }.items()
        ),
    ],
)
def test_a_run_is_bitwise_the_one_without_and_the_next_runs_no_language_model(
    flags: str, silent: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    train("plain", *flags.split())
    train("first", *flags.split(), *CACHE)
    there = files()
    assert there
    silent()
    capsys.readouterr()
    train("second", *flags.split(), *CACHE)
    assert contents("first") == contents("plain")
    assert contents("second") == contents("plain")
    assert files() == there
    assert "activation_cache" not in Path("first/run.yaml").read_text()
    if "exclude" not in flags:
        said = capsys.readouterr().out
        assert f"activations all of them are in {Path('cache').absolute()}" in said


def test_seeds_of_one_text_seed_share_a_harvest_and_are_still_seeds(
    silent: Callable[[], None],
) -> None:
    train("same", "--seed", "3", "--text_seed", "3")
    train("seed-3", "--seed", "3", *CACHE)
    silent()
    train("seed-4", "--seed", "4", "--text_seed", "3", *CACHE)
    weights = [Path(run, "sae_weights.safetensors").read_bytes() for run in ("seed-3", "seed-4")]
    assert Path("same", "sae_weights.safetensors").read_bytes() == weights[0] != weights[1]
    assert yaml.safe_load(Path("seed-4", "run.yaml").read_text())["text_seed"] == 3


def of(*flags: str, threads: int | None = None) -> list[Harvest]:
    settings = settle(train_flags([*RUN, *flags])).for_saelens()
    return harvests(settings, 16, threads)


@pytest.mark.ci
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--architecture topk --k 4",
        "--activations_mixing_fraction 0",
        "--train_batch_size_tokens 100 --n_batches_in_buffer 9",
        "--heldout_tokens 0 --store_batch_size_prompts 7",
    ],
)
def test_what_is_said_before_is_what_is_written(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train("run", *flags.split(), *CACHE)
    found = of(*flags.split())
    assert len(files()) == sum(one.entries for one in found)
    whole = sum(one.entries * one.entry_bytes for one in found)
    assert whole - 1000 * len(files()) < sum(path.stat().st_size for path in files()) <= whole
    said = capsys.readouterr().out
    assert f"activations up to {whole / 1000:.1f} KB more in {Path('cache').absolute()}" in said


def test_a_run_that_goes_over_the_budget_is_refused_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train("run", *CACHE, "--cache_budget", "100KB", code=2)
    said = capsys.readouterr().err
    assert "the folder holds 0 bytes, and --cache_budget is 100.0 KB: raise it, make room" in said
    assert not Path("cache").exists()
    assert not Path("run").exists()
    folder = Folder(Path("cache").absolute(), 200_000)
    (one, _), (other, _) = of(), of("--seed", "3")
    keep(one, folder, one.entries)
    assert plan([one], replace(folder, budget=1)).startswith("all of them are in")
    with pytest.raises(PluginError, match=r"the folder holds \d+\.\d KB, and --cache_budget is"):
        plan([one, other], folder)
    assert len(files()) == one.entries


def keep(harvest: Harvest, folder: Folder, entries: int) -> None:
    store = reading(ActivationCache([harvest], folder))
    for number in range(entries):
        assert store.get_activations(torch.full((4, 16), number))[0, 0, 0] == number


def reading(cache: ActivationCache, off: float = 0) -> Any:
    """A store with activations [prompts, positions, d_in] that are the tokens, and so much off."""
    store = SimpleNamespace(
        device=torch.device("cpu"),
        get_activations=lambda tokens: tokens[..., None].expand(-1, -1, 16).float() + off,
    )
    cache.serve(store, False)
    return store


def test_a_full_disk_is_named_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = SimpleNamespace(free=kept.SPARE + 1000, total=1, used=1)
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PluginError, match=r"the disk has 1\.0 KB to spare: make room"):
        plan(of(), Folder(Path("cache"), 10**9))
    assert not Path("cache").exists()


def test_no_entry_goes_over_the_budget_where_more_is_read_than_was_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = replace(of()[0], entries=1)
    folder = Folder(Path("cache").absolute(), 3 * one.entry_bytes)
    keep(one, folder, 5)
    assert len(files()) == 3
    assert caplog.text.count("takes no more activations") == 1
    assert "--cache_budget" in caplog.text


def test_two_runs_at_once_stay_within_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    pair = [replace(of("--seed", seed)[0], entries=3) for seed in ("1", "2")]
    folder = Folder(Path("cache").absolute(), 3 * pair[0].entry_bytes)
    caches = [ActivationCache([one], folder) for one in pair]
    assert [cache.plan().startswith("up to") for cache in caches] == [True, True]
    stores = [reading(cache) for cache in caches]
    for number in range(3):
        for store in stores:
            store.get_activations(torch.full((4, 16), number))
    assert len(files()) == 3
    assert caplog.text.count("takes no more activations") == 2


# -- what they depend on ---------------------------------------------------------------------------


def identities(*flags: str, **named: Any) -> list[str]:
    return [one.identity for one in of(*flags, **named)]


@pytest.mark.parametrize(
    "flags",
    [
        "--seed 3", "--hook_name blocks.0.hook_resid_post", "--context_size 8", "--autocast_lm",
        "--store_batch_size_prompts 8", "--seqpos_slice 1 -1", "--heldout_tokens 100",
        "--prepend_bos false", "--sequence_separator_token none", "--compile_llm",
        '--model_kwargs {"a":1}', "--disable_concat_sequences", "--llm_device meta",
    ],
)  # fmt: skip
def test_other_activations_lie_elsewhere(flags: str) -> None:
    other = identities(*flags.split())
    assert other[0] != identities()[0]
    assert (other[1] == identities()[1]) == (flags == "--seed 3")  # what is held out has no order


def test_what_only_the_sae_depends_on_is_no_part_of_it() -> None:
    flags = "--lr 0.5 --d_sae 8 --architecture topk --k 2 --training_tokens 99k --plugin reorder"
    assert identities(*flags.split(), "--n_batches_in_buffer", "16") == identities()


def test_another_machine_computes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identities()
    assert identities(threads=7) != before
    for owner, name, value in (
        (machine, "_processor", "another"),
        (activation_cache, "versions", {"torch": "9"}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, lambda *_, value=value: value)
            assert identities() != before
    assert identities() == before


def test_files_count_and_not_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[str] = set()
    for place, content in (("a", "1"), ("b", "1"), ("b", "2")):
        fact = {"at": place, "files": {"model.safetensors": content}}
        monkeypatch.setattr(activation_cache, "made_from", lambda *_, fact=fact: {"model": fact})
        found.add(identities()[0])
    assert len(found) == 2


def test_a_model_that_nobody_can_tell_from_another_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activation_cache, "made_from", lambda *_: {"model": None})
    with pytest.raises(PluginError, match="give --model_revision a commit, or leave"):
        of()


# -- faults ----------------------------------------------------------------------------------------


def test_a_damaged_entry_is_named_and_computed_again(caplog: pytest.LogCaptureFixture) -> None:
    one, folder = of()[0], Folder(Path("cache").absolute(), 10**9)
    keep(one, folder, 3)
    whole, cut, flipped = files()
    for path, content in ((cut, cut.read_bytes()), (flipped, flipped.read_bytes())):
        path.write_bytes(content[:-5] + (b"" if path == cut else b"\x07" + content[-4:]))
    keep(one, folder, 3)
    for path in (cut, flipped):
        assert f"{path.absolute()} is damaged and is computed again" in caplog.text
    assert str(whole) not in caplog.text
    assert files() == [whole, cut, flipped]
    store = reading(ActivationCache([one], folder), off=1)
    for number in range(3):  # all are read
        assert store.get_activations(torch.full((4, 16), number))[0, 0, 0] == number


def test_a_folder_that_takes_nothing_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, folder = of()[0], Folder(Path("cache").absolute(), 10**9)
    keep(one, folder, 3)
    there = files()

    def access(path: Any, mode: int) -> bool:
        return mode != os.W_OK

    monkeypatch.setattr(os, "access", access)  # as root may write everywhere
    keep(one, folder, 5)
    assert files() == there
    assert plan([one], folder).endswith("is read-only: what it holds is used, and nothing is added")
    assert "takes no more" not in caplog.text  # which has been said


def test_a_disk_that_fills_up_costs_nothing_and_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"a part of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    keep(of()[0], Folder(Path("cache").absolute(), 10**9), 3)
    assert not files()
    assert caplog.text.count("takes no more activations") == 1
    assert "no space left on device" in caplog.text


@pytest.fixture
def plain() -> dict[str, Any]:
    """What the run leaves without a cache."""
    train("plain")
    return contents("plain")


def elsewhere(work: Callable[[], Any], ends: int = 0) -> None:
    """Do it in a process of its own, which ends with this code."""
    process = FORK.Process(target=_child, args=(work,))
    process.start()
    process.join(300)
    assert process.exitcode == ends, Path("log.txt").read_text()


def _child(work: Callable[[], Any]) -> None:
    tqdm.set_lock(threading.RLock())  # which forked processes share, and a killed one keeps
    torch.set_num_threads(1)
    with Path("log.txt").open("a") as sys.stdout:
        sys.stderr = sys.stdout
        work()
    os._exit(0)


def killed_at(entry: int, *arguments: str) -> None:
    """Run the command, which is killed when an entry is written and has not got its name."""
    own, written = safetensors.torch.save_file, iter(range(10**6))

    def save(tensors: Any, path: Any, *rest: Any) -> None:
        own(tensors, path, *rest)
        if "cache" in Path(path).parts and next(written) == entry:
            os.kill(os.getpid(), signal.SIGKILL)

    safetensors.torch.save_file = save
    main(["train", *RUN, "--output_path", "run", *arguments])


@pytest.mark.ci
@pytest.mark.parametrize("between", ["kept", "removed", "left out"])
def test_a_run_killed_while_it_keeps_goes_on_bitwise(
    between: str, plain: dict[str, Any], silent: Callable[[], None]
) -> None:
    elsewhere(lambda: killed_at(22, *CACHE), -signal.SIGKILL)
    assert checkpoints_in(Path("run", UNFINISHED, OUR_CHECKPOINTS))
    names = [path.name for path in files()]
    assert sum(name.endswith(".safetensors") for name in names) == 22
    assert sum(name.endswith(".partial") for name in names) == 1
    if between == "removed":
        shutil.rmtree("cache")
    none = ["--activation_cache", "none"] if between == "left out" else []
    assert main(["train", "--resume", "run", *none]) == 0
    assert contents("run") == plain
    there = [path for path in files() if path.suffix == ".safetensors"]
    assert all(kept.read(path) for path in there)
    whole = sum(one.entries for one in of())
    if between == "kept":
        assert len(there) == whole
        silent()
        train("again", *CACHE)
        assert contents("again") == plain
    elif between == "left out":
        assert len(there) == 22
    else:
        assert 0 < len(there) < whole


@pytest.mark.ci
def test_two_runs_share_a_folder_that_both_fill(plain: dict[str, Any]) -> None:
    runs = [
        FORK.Process(target=_child, args=(lambda name=name: train(name, *CACHE),))
        for name in ("one", "two")
    ]
    for process in runs:
        process.start()
    for process in runs:
        process.join(300)
    assert [process.exitcode for process in runs] == [0, 0], Path("log.txt").read_text()
    assert contents("one") == contents("two") == plain
    assert len(files()) == sum(one.entries for one in of())
    assert all(kept.read(path) for path in files())
