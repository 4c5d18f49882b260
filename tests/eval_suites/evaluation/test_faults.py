"""What goes wrong while SAEs are evaluated, by the command line, on the embedded model."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_plugins import world
from sae_plugins.entrypoints.main import main
from sae_plugins.eval_suites.core import Core

QUICK = (
    "--suite core --core.n_eval_reconstruction_batches 1 --core.n_eval_sparsity_variance_batches 1"
    " --core.batch_size_prompts 2 --core.context_size 16 --device cpu"
)

pytestmark = pytest.mark.usefixtures("sketched")


@pytest.fixture
def sae(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves an untrained SAE and gives its folder."""

    def save(name: str, seed: int = 0, d_in: int = 192, hook: str = "blocks.1.hook_resid_post",
             change: Callable[[StandardSAE], None] = lambda sae: None) -> Path:  # fmt: skip
        config = StandardSAEConfig(d_in=d_in, d_sae=64)
        config.metadata.model_name, config.metadata.hook_name = world.NAME, hook
        config.metadata.prepend_bos = True
        torch.manual_seed(seed)
        made = StandardSAE(config)
        with torch.no_grad():
            made.W_enc.normal_(std=0.1)
            made.W_dec.copy_(torch.nn.functional.normalize(made.W_enc.T, dim=1))
            change(made)
        made.save_model(tmp_path / name)
        return tmp_path / name

    return save


def command(saes: list[Path], out: Path, flags: str = "") -> list[str]:
    names = [str(sae) for sae in saes]
    cache = str(out.parent / "cache")
    return ["evaluate", *names, *QUICK.split(), *flags.split(), "--output_path", str(out),
            "--cache_path", cache]  # fmt: skip


def evaluate(saes: list[Path], out: Path, flags: str = "") -> int:
    return main(command(saes, out, flags))


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Results by SAE and seed, none where there is no manifest."""
    if not (out / "manifest.json").exists():
        return {}
    manifest = json.loads((out / "manifest.json").read_text())
    rows = [row for row in manifest["rows"] if row["status"] == "ok"]
    read = {f"{r['sae']} {r['seed']}": json.loads((out / r["file"]).read_text()) for r in rows}
    return {name: result["metrics"] for name, result in read.items()}


def test_bad_saes_do_not_stop_the_good_one(
    sae: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nan(made: StandardSAE) -> None:
        made.W_dec[3, 5] = torch.nan

    saes = [
        sae("narrow", d_in=48),
        sae("elsewhere", hook="blocks.9.hook_resid_post"),
        sae("broken", change=nan),
        tmp_path,
        sae("good"),
    ]
    assert evaluate(saes, tmp_path / "out") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "takes activations of d_in 48, and those of sae-plugins-world at" in said
    assert "have 192: it was trained on another model or hook" in said
    assert "sae-plugins-world has no hook 'blocks.9.hook_resid_post'; did you mean" in said
    assert "W_dec" in said
    assert f"{tmp_path.name} holds no SAE" in said
    assert list(results(tmp_path / "out")) == ["good 42"]


def test_a_mistyped_path_is_refused_before_anything_is_loaded(
    sae: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    good, file = sae("good"), tmp_path / "good/cfg.json"
    monkeypatch.setattr("sae_lens.SAE.load_from_disk", None)
    assert evaluate([good, tmp_path / "goood", file], tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'goood'} is no folder; did you mean '{tmp_path / 'good'}'?" in said
    assert f"{file} is a file; name the folder {tmp_path / 'good'}" in said
    assert not (tmp_path / "out").exists()


def test_prompts_longer_than_the_model_s_are_refused(
    sae: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--suite scr --scr.context_length 4000 --core.context_size 4000"
    assert evaluate([sae("good")], tmp_path / "out", flags) == 1
    said = " ".join(capsys.readouterr().out.split())
    for name in ("core.context_size", "scr.context_length"):
        assert f"--{name} 4000 is too large: sae-plugins-world reads 256 tokens" in said
    assert not list((tmp_path / "out").rglob("*.error.txt")), "each is a sentence"


def test_two_saes_of_one_name(sae: Callable[..., Path], tmp_path: Path) -> None:
    one, other = sae("first/run"), sae("second/run", seed=1)
    assert evaluate([one, other], tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"]
    scores = {
        json.loads((tmp_path / "out" / row["file"]).read_text())["metrics"]["mse"]["value"]
        for row in rows
    }
    assert len(scores) == len({row["file"] for row in rows}) == 2


def test_a_decoder_of_other_norms_is_the_same_sae(sae: Callable[..., Path], tmp_path: Path) -> None:
    def scaled(made: StandardSAE) -> None:
        made.W_dec *= 4
        made.W_enc /= 4
        made.b_enc /= 4

    assert evaluate([sae("unit"), sae("scaled", change=scaled)], tmp_path / "out") == 0
    unit, other = results(tmp_path / "out").values()
    for name, value in unit.items():
        assert other[name]["value"] == pytest.approx(value["value"], rel=1e-4, abs=1e-5), name


FORK = multiprocessing.get_context("fork")


def _child(saes: list[Path], out: Path, flags: str, scored: int = 0, file: str = "") -> None:
    torch.set_num_threads(1)  # its pool of threads is no more, and two threads would make another
    if file:
        _kill_at(scored, file)
    sys.exit(evaluate(saes, out, flags))


def _kill_at(scored: int, file: str) -> None:
    """This process is killed when so many rows have scores and such a file is to take its place."""
    own_evaluate, own_replace, numbers = Core.evaluate, os.replace, []

    def counting(*given: Any) -> Any:
        scores = own_evaluate(*given)
        numbers.append(len(numbers))
        return scores

    def killing(partial: Path, path: Path) -> None:
        if len(numbers) == scored and fnmatch(path.name, file):
            os.kill(os.getpid(), signal.SIGKILL)
        own_replace(partial, path)

    Core.evaluate = counting  # type: ignore[method-assign]
    os.replace = killing  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("scored", "file", "listed"),
    [
        pytest.param(2, "*", 1, marks=pytest.mark.ci),  # SAEBench's own JSON, which is the first
        pytest.param(0, "manifest.json", 0, marks=pytest.mark.ci),
        pytest.param(1, "*.safetensors", 1, marks=pytest.mark.ci),  # in the cache, for the second
        pytest.param(2, "core-seed2-*[0-9a-f].json", 1, marks=pytest.mark.ci),
        pytest.param(2, "manifest.json", 1, marks=pytest.mark.ci),
        pytest.param(2, "results.csv", 2, marks=pytest.mark.ci),
        pytest.param(2, "details.csv", 2, marks=pytest.mark.ci),
    ],
)
def test_killed_and_run_again(
    scored: int, file: str, listed: int, sae: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = sae("run"), tmp_path / "killed" / "out"
    flags = "--seed 1 2 3"
    child = FORK.Process(target=_child, args=([folder], out, flags, scored, file))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    assert list(out.parent.rglob("*.partial"))
    whole = [file for file in out.glob("*/*.json") if file.with_suffix("").suffix != ".saebench"]
    finished = {file: file.read_bytes() for file in whole}
    assert len(results(out)) == listed

    assert evaluate([folder], out, flags) == 0
    assert not list(out.rglob("*.partial"))
    assert {file: file.read_bytes() for file in finished} == finished
    rows = csv.DictReader((out / "results.csv").read_text().splitlines())
    assert {row["seed"] for row in rows} == {"1", "2", "3"}
    assert evaluate([folder], tmp_path / "whole" / "out", flags) == 0
    assert results(out) == results(tmp_path / "whole" / "out")


@pytest.mark.ci
def test_two_at_once_on_one_cache(sae: Callable[..., Path], tmp_path: Path) -> None:
    saes = [sae("a"), sae("b", seed=1)]
    outs = [tmp_path / "out-a", tmp_path / "out-b"]
    both = [
        FORK.Process(target=_child, args=([one], out, "--seed 1 2"))
        for one, out in zip(saes, outs, strict=True)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    for one, out in zip(saes, outs, strict=True):
        alone = tmp_path / "alone" / out.name
        assert evaluate([one], alone, "--seed 1 2") == 0
        assert results(out) == results(alone)


def test_a_damaged_cache_is_made_anew(sae: Callable[..., Path], tmp_path: Path) -> None:
    assert evaluate([sae("run")], tmp_path / "out") == 0
    entries = list((tmp_path / "cache").rglob("*.safetensors"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    assert evaluate([tmp_path / "run"], tmp_path / "again") == 0
    assert results(tmp_path / "again") == results(tmp_path / "out")


def test_no_sae_is_scored_on_anothers_text(sae: Callable[..., Path], tmp_path: Path) -> None:
    """How much text is left out depends on how much the SAE was trained on."""
    trained, other = sae("trained"), sae("other", seed=1)
    facts = {"training_tokens": 20_000, "dataset_path": "Skylion007/openwebtext"}
    (trained / "runner_cfg.json").write_text(json.dumps(facts))
    assert evaluate([other, trained], tmp_path / "both") == 0
    assert evaluate([trained], tmp_path / "alone") == 0
    both, alone = results(tmp_path / "both"), results(tmp_path / "alone")
    assert both["trained 42"] == alone["trained 42"]
    clean = [both[name]["ce_loss_without_sae"]["value"] for name in ("trained 42", "other 42")]
    assert clean[0] != clean[1]


def test_open_text_that_is_not_in_the_embedded_world_is_refused(
    sae: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in ("", "--dry_run"):
        assert evaluate([sae("run")], tmp_path / "out", f"--core.dataset another {flags}") == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "there is no open text 'another' in the embedded world, which has its own" in said
    assert not results(tmp_path / "out")


def test_results_of_other_settings_stay_apart(sae: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = sae("run"), tmp_path / "out"
    assert evaluate([folder], out) == 0
    assert evaluate([folder], out, "--core.context_size 8") == 0
    rows = (out / "results.csv").read_text().splitlines()
    settings = {line.split(",")[rows[0].split(",").index("settings")] for line in rows[1:]}
    assert len(settings) == 2
    assert len(json.loads((out / "manifest.json").read_text())["rows"]) == 2
