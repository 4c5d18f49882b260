"""`sae-plugins train --dry_run`: a start's checks, what the run takes, and nothing written."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value

from sae_plugins.entrypoints.main import main
from sae_plugins.runs import downloads, language_model
from sae_plugins.runs.recorder import Recorder

SIZES = (
    "--training_tokens 3200 --train_batch_size_tokens 64 --d_sae 32 --heldout_tokens 256 "
    "--checkpoint_every 10"
)
PROMPTS = "--context_size 16 --store_batch_size_prompts 4 --n_batches_in_buffer 64"
METHOD = "--plugin reorder --reorder.start 0.5 --reorder.interval 7"
CACHED = "--use_cached_activations --cached_activations_path cached"
KINDS = {
    "world": f"{SIZES} {PROMPTS}",
    "texts of its own": f"{SIZES} {PROMPTS} --dataset_path tokens",
    "cached": f"{SIZES} {PROMPTS} {CACHED}",
    "synthetic": f"{SIZES} --model_name synthetic:toy",
}
"""50 steps each."""


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(autouse=True)
def here(tiny_world: Any, sketched: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory with data, and caches of its own."""
    for name, place in {"XDG_CACHE_HOME": "cache", "TMPDIR": "tmp", "WANDB_DIR": "."}.items():
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.setattr(tempfile, "tempdir", None)
    Path("tmp").mkdir()
    rows = torch.randint(50, (300, 16)).tolist()
    Dataset.from_dict({"tokens": rows}).save_to_disk("tokens")
    hook = "blocks.1.hook_resid_post"
    kinds = {hook: Array2D((16, 16), "float32"), "token_ids": Sequence(Value("int32"))}
    acts = torch.randn(300, 16, 16).tolist()
    Dataset.from_dict({hook: acts, "token_ids": rows}, Features(kinds)).save_to_disk("cached")
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """A command line of `train`, whose dry run must leave everything as it was."""

    def command(line: str, *, is_dry: bool = True) -> Said:
        before = snapshot()
        capsys.readouterr()
        code = main(["train", *line.split(), *(["--dry_run"] if is_dry else [])])
        assert not is_dry or snapshot() == before
        return Said(code, *capsys.readouterr())

    return command


def snapshot() -> dict[str, Any]:
    """Every file and folder here, with its contents and its times."""
    found: dict[str, Any] = {}
    for path in sorted(Path().rglob("*")):
        if path.parts[0] == "tmp" and path.parts[1:] and not path.match("tmp/sae-plugins-*"):
            continue  # of others, and until the process ends
        contents = path.read_bytes() if path.is_file() else None
        # something may come and go where temporary files are
        found[str(path)] = (contents, path != Path("tmp") and path.stat().st_mtime_ns)
    return found


def row(said: str, name: str) -> list[str]:
    """The lines of one name."""
    lines = said.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith(f"{name:<12}"))
    more = (place for place in range(first + 1, len(lines)) if lines[place][:12].strip())
    return [line[12:] for line in lines[first : next(more, len(lines))]]


RARE = pytest.param("texts of its own", marks=pytest.mark.ci)


@pytest.mark.parametrize("kind", [RARE, "world", "cached", "synthetic"])
def test_a_dry_run_says_what_the_run_would_be(kind: str, run: Command):
    said = run(f"{KINDS[kind]} {METHOD} --output_path run --profile")
    assert said.code == 0, said.err
    d_in = 48 if kind == "synthetic" else 16
    number = 2 * 32 * d_in + 32 + d_in
    assert row(said.out, "SAE") == [f"standard, {d_in} -> 32 features"]
    assert row(said.out, "options")[0].startswith("reorder: interval 7, adaptive true")
    assert ", start 25," in row(said.out, "options")[0]
    assert row(said.out, "schedule") == [
        "reorder: every 7 steps, first at step 28, last at step 49"
    ]
    assert row(said.out, "parameters")[0].startswith(f"SAE {number:,}")
    assert row(said.out, "memory")[0].startswith("cpu: ")
    assert any("Adam's moments" in line for line in row(said.out, "memory"))
    assert "reorder " in row(said.out, "memory")[-1]  # what it keeps
    assert row(said.out, "disk")[0].endswith(" free")
    assert row(said.out, "to train") == ["50 steps on 3,200 tokens"]
    assert re.match(r"about [\d,]+ tokens/s, by 12 steps", row(said.out, "speed")[0])
    assert re.match(r"about [\d.]+ s; ", row(said.out, "time")[0])
    assert row(said.out, "profile")
    whose = "synthetic model" if kind == "synthetic" else "language model"
    timed = "cached" if kind == "cached" else whose
    assert any(timed in line for line in row(said.out, "speed"))
    assert any("SAE step" in line for line in row(said.out, "speed"))


NORMALIZED = "--normalize_activations expected_average_only_in --n_batches_for_norm_estimate 9"


@pytest.mark.parametrize("kind", ["world", pytest.param("synthetic", marks=pytest.mark.ci)])
def test_what_is_left_of_a_run_that_goes_on(
    kind: str, run: Command, monkeypatch: pytest.MonkeyPatch
):
    interrupt(run, f"{KINDS[kind]} {METHOD} {NORMALIZED} --output_path run", monkeypatch)
    said = run("--resume run")
    assert said.code == 0, said.err
    assert row(said.out, "resumed") == ["after step 20"]
    assert row(said.out, "to train") == ["30 steps on 1,920 tokens are left"]
    assert "about " in row(said.out, "time")[0]


@pytest.mark.ci
def test_an_unfinished_run_in_the_way(run: Command, monkeypatch: pytest.MonkeyPatch):
    line = f"{KINDS['world']} --output_path run"
    interrupt(run, line, monkeypatch)
    said = run(line)
    assert said.code == 2
    assert "holds an unfinished run" in said.err
    said = run(f"{line} --overwrite")
    assert said.code == 0
    assert row(said.out, "to train") == ["50 steps on 3,200 tokens"]
    assert run("--resume run", is_dry=False).code == 0
    said = run("--resume run")
    assert said.code == 2
    assert "is finished" in said.err


def interrupt(run: Command, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a run end early, which leaves a checkpoint after step 20."""
    own = Recorder.count

    def count(self: Recorder, run: Any, tokens: int) -> None:
        if run.step == 25:
            raise RuntimeError("killed")
        own(self, run, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "count", count)
        assert run(line, is_dry=False).code == 1


@pytest.mark.ci
def test_a_run_that_cannot_go_on_is_refused(run: Command, monkeypatch: pytest.MonkeyPatch):
    interrupt(run, f"{KINDS['texts of its own']} --output_path run", monkeypatch)
    rows = torch.randint(50, (300, 16)).tolist()
    shutil.rmtree("tokens")
    Dataset.from_dict({"tokens": rows}).save_to_disk("tokens")
    dry, real = run("--resume run"), run("--resume run", is_dry=False)
    assert (dry.code, dry.err) == (real.code, real.err)
    assert dry.code == 2
    assert "has changed" in dry.err


@pytest.mark.ci
def test_a_run_of_which_only_the_score_is_missing(run: Command, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no score")

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "heldout_metrics", fail)
        with pytest.raises(RuntimeError, match="no score"):
            run(f"{KINDS['world']} --output_path run", is_dry=False)
    said = run("--resume run")
    assert said.code == 0
    assert "has ended; its SAE has only to be scored" in said.out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--d_sae 100000000000", "the run needs"),
        ("--hook_name blocks.7.hook_resid_post", "has no such hook"),
        ("--heldout_tokens 10 --context_size 99", "--context_size 99 is too large"),
        ("--plugin linear-l1 --architecture topk --k 2", "linear-l1"),
        pytest.param(
            *("--prefetch_llm_batches --compile_sae", "--prefetch_llm_batches and --compile_sae"),
            marks=pytest.mark.ci,
        ),
        ("--output_path tokens", "--output_path tokens is not empty"),
        ("--output_path tokens/state.json/run", "cannot be written to"),
        ("--output_path tokens/state.json", "is a file"),
        ("--activation_cache tokens/state.json/in", "cannot be made: not a directory"),
    ],
)
def test_what_would_not_start_is_refused_with_the_same_words(flags: str, reason: str, run: Command):
    line = f"{KINDS['world']} --output_path run {flags}"
    dry = run(line)
    assert dry.code == 2
    assert reason in dry.err
    real = run(line, is_dry=False)
    assert real.code  # which is 1 where training had begun
    assert numberless(real.err) == numberless(dry.err)


def test_what_reads_ahead_may_have_the_fast_step(run: Command):
    line = f"{KINDS['world']} --output_path run --prefetch_llm_batches --fast_step"
    for is_dry in (True, False):
        said = run(line, is_dry=is_dry)
        assert said.code == 0, said.err


def numberless(text: str) -> str:
    """Without how much memory is free just now."""
    return re.sub(r"[\d.]+ (?=GB are available)", "", text)


def test_too_small_a_disk(run: Command, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    said = run(f"{KINDS['world']} --output_path run")
    assert said.code == 2
    assert "and 1.0 KB are free" in said.err


def test_what_must_be_downloaded_is_only_said(run: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(downloads, "downloads", lambda _: {"--model_name big": 5_000_000_000})
    monkeypatch.setattr(language_model, "load_model", None)
    said = run(f"{KINDS['world']} --output_path run")
    assert said.code == 0
    assert row(said.out, "to download") == [
        "--model_name big: 5.0 GB",
        "until then, no step is tried, and no text is checked",
    ]
    assert row(said.out, "memory")
    assert "tokens/s" not in said.out


@pytest.mark.ci
def test_no_activations_are_kept(run: Command):
    assert run(f"{KINDS['world']} --activation_cache kept --output_path run").code == 0


@pytest.mark.ci
def test_saelens_checkpoints_and_its_log_are_said_and_not_made(run: Command):
    said = run(
        f"{KINDS['world']} --n_checkpoints 20 --checkpoint_path kept --log_to_wandb "
        "--output_path deep/run"
    )
    assert said.code == 0
    assert "SAELens writes 20 checkpoints of" in row(said.out, "disk")[-1]
    assert row(said.out, "disk")[-1].endswith("/kept")


@pytest.mark.ci
def test_a_cache_of_activations_is_said_and_not_filled(run: Command):
    line = f"{KINDS['world']} --activation_cache acts"
    said = run(line)
    assert said.code == 0, said.err
    assert row(said.out, "activations")[0].startswith("up to ")
    assert not Path("acts").exists()
    assert run(f"{line} --cache_budget 1KB").code == 2
    assert run(f"{line} --output_path run", is_dry=False).code == 0
    assert row(run(line).out, "activations") == [f"all of them are in {Path('acts').absolute()}"]
