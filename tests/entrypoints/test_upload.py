"""`sae-plugins upload` against the loopback Hub: whole trips, cuts, refusals, and what stays."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import Ask, LoopbackHub
from huggingface_hub import ModelCard
from sae_lens import StandardSAE, StandardSAEConfig
from safetensors.torch import load_file, save_file
from snippets import ROOT

from sae_plugins import world
from sae_plugins.base import errors
from sae_plugins.base import hub as base_hub
from sae_plugins.entrypoints.main import main
from sae_plugins.eval_suites.evaluation.loading import load_subject
from sae_plugins.eval_suites.evaluation.manifest import Manifest, Row
from sae_plugins.eval_suites.evaluation.results import Result, SAEInfo
from sae_plugins.eval_suites.suite import Value
from sae_plugins.share import repository as hub

REPO = "me/saes"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder `evaluations` lies about."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; how long they would have."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def loopback_hub(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> LoopbackHub:
    """This process' own, as somebody who may write."""
    loopback_hub.here(monkeypatch, loopback_hub.token("me"))
    return loopback_hub


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes the folder of a run with an untrained SAE."""

    def make(name: str = "demo", seed: int = 0, d_in: int = 8) -> Path:
        config = StandardSAEConfig(d_in=d_in, d_sae=16)
        config.metadata.model_name = world.NAME
        config.metadata.hook_name = "blocks.1.hook_resid_post"
        torch.manual_seed(seed)
        sae = StandardSAE(config)
        with torch.no_grad():
            sae.W_enc.normal_()
            sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_enc.T, dim=1))
        folder = tmp_path / name
        sae.save_model(folder)
        save_file({"sparsity": torch.zeros(16)}, folder / "sparsity.safetensors")
        (folder / "run.yaml").write_text(
            f"seed: {seed}\ndataset_path: {Path.home()}/text\n"
            f"cached_activations_path: /data/acme corp/cache\nstop: {Path.cwd()}/data/x\n"
        )
        (folder / "summary.json").write_text('{"training/l0": 7.5}\n')
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')
        (folder / "runner_cfg.json").write_text(json.dumps({"output_path": str(folder)}))
        for inner in ("figures/loss_and_l0.png", "checkpoints/5/sae_weights.safetensors",
                      "figures/own.png", "figures/metrics/own.png", "plugin_files/own.py",
                      "unfinished/resume/step.safetensors", "notes.txt"):  # fmt: skip
            (folder / inner).parent.mkdir(exist_ok=True, parents=True)
            (folder / inner).write_bytes(PNG)
        return folder

    return make


PUBLISHED = {
    "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "run.yaml", "summary.json",
    "metrics.jsonl", "figures/loss_and_l0.png",
}  # fmt: skip


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a folder of `evaluate` with a result of an SAE."""

    def make(folder: Path, name: str = "evaluations", suite: str = "core") -> Path:
        subject = load_subject(str(folder))
        info = {field: getattr(subject, field) for field in SAEInfo.model_fields}
        result = Result(
            suite=suite, status="ok", sae=SAEInfo(**info), seed=1, preset="quick",
            metrics={"ce_loss_score": Value(value=0.8125)}, raw=f"{suite}-seed1-abc.saebench.json",
        )  # fmt: skip
        file = f"{subject.name}-{subject.hash[:8]}/{suite}-seed1-abc.json"
        row = Row(
            suite=suite, sae=subject.name, source=subject.source, sae_hash=subject.hash, seed=1,
            settings="s", status="ok", file=file,
        )  # fmt: skip
        out = tmp_path / name
        (out / file).parent.mkdir(parents=True)
        (out / file).write_text(result.model_dump_json())
        (out / file).with_name(str(result.raw)).write_text("{}")
        (out / "manifest.json").write_text(Manifest(rows=[row]).model_dump_json())
        return out

    return make


def upload(*arguments: object) -> int:
    return main(["upload", *map(str, arguments)])


def inside(loopback_hub: LoopbackHub, sae_id: str = "demo", branch: str = "main") -> set[str]:
    """The names of an SAE's files at the Hub."""
    prefix = f"{sae_id}/"
    names = loopback_hub.files(REPO, branch)
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def written(loopback_hub: LoopbackHub) -> list[str]:
    """The requests that would have changed something."""
    return [path for method, path, _ in loopback_hub.requests if method not in ("GET", "HEAD")]


ALONE = "assert 'sae_plugins' not in sys.modules"

# -- the whole trip --------------------------------------------------------------------------------


def test_sae_lens_alone_loads_what_was_uploaded(
    ask: Ask,
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run()
    token = next(iter(loopback_hub.tokens))
    assert upload(folder, REPO) == 0
    said = capsys.readouterr()
    assert f"{loopback_hub.endpoint}/{REPO}\n" in said.out
    assert token not in said.out + said.err
    lines = [line[4:] for line in said.out.splitlines() if line.startswith("    ")]
    lines.append("features = sae.encode(activations)")
    acts = "torch.linspace(-1, 1, 24).reshape(3, 8)"
    loaded = ask(
        "\n".join(["import sys, torch", f"activations = {acts}", *lines,
                   "print(features.tolist())", ALONE if ask == loopback_hub.run else ""])
    )  # fmt: skip
    sae = load_subject(str(folder)).sae
    here = sae.encode(torch.linspace(-1, 1, 24).reshape(3, 8))
    assert here.abs().sum() > 0
    assert json.loads(loaded) == here.tolist()

    assert inside(loopback_hub) == PUBLISHED
    card = loopback_hub.files(REPO)["README.md"].decode()
    assert "## demo" in card
    assert "demo/figures/loss_and_l0.png" in card
    assert loopback_hub.titles(REPO) == ["Upload SAE demo", "initial commit"]
    everything = b"".join(loopback_hub.files(REPO).values())
    assert str(Path.home()).encode() not in everything
    assert loopback_hub.files(REPO)["demo/run.yaml"] == (
        b"seed: 0\ndataset_path: ~/text\ncached_activations_path: cache\nstop: data/x\n"
    )


@pytest.fixture
def only_sae_lens(tmp_path: Path) -> str:
    """The Python of an environment in which SAELens is installed, and nothing of ours."""
    folder = tmp_path / "only-sae-lens"
    uv = [sys.executable, "-m", "uv", "--quiet"]
    lock = str(ROOT / "requirements.lock")
    installing = [*uv, "pip", "install", "--python", str(folder), "--constraint", lock]
    subprocess.run([*uv, "venv", "--python", sys.executable, str(folder)], check=True)
    subprocess.run([*installing, "sae-lens"], check=True)
    return str(folder / "bin" / "python")


@pytest.mark.slow
def test_train_evaluate_upload_and_load(
    loopback_hub: LoopbackHub, only_sae_lens: str, tmp_path: Path
) -> None:
    training = (
        "--architecture topk --k 4 --d_sae 64 --training_tokens 2000 --heldout_tokens 1000 "
        "--train_batch_size_tokens 250 --context_size 25 --store_batch_size_prompts 4 "
        "--n_batches_in_buffer 16 --output_path runs/demo"
    )
    evaluation = (
        "--suite core --core.n_eval_reconstruction_batches 1 --core.batch_size_prompts 2 "
        "--core.n_eval_sparsity_variance_batches 1 --core.context_size 16 --cache_path cache"
    )
    assert main(["train", *training.split()]) == 0
    assert main(["evaluate", "runs/demo", *evaluation.split()]) == 0
    assert upload("runs/demo", REPO) == 0
    loaded = loopback_hub.run(
        f"""
import importlib.util
import torch
from sae_lens import SAE
assert not importlib.util.find_spec("sae_plugins")
sae = SAE.from_pretrained({REPO!r}, "demo")
print(sae(torch.linspace(-9, 9, 2 * 192).reshape(2, 192)).tolist())
""",
        python=only_sae_lens,
    )
    sae = load_subject("runs/demo").sae
    assert json.loads(loaded) == sae(torch.linspace(-9, 9, 2 * 192).reshape(2, 192)).tolist()
    card = ModelCard(loopback_hub.files(REPO)["README.md"].decode())
    assert card.data.library_name == "saelens"
    assert {"saelens", "sparse-autoencoder"} <= set(card.data.tags)
    assert card.data.eval_results
    everything = b"".join(loopback_hub.files(REPO).values())
    assert str(tmp_path).encode() not in everything


def test_training_begins_with_an_sae_on_the_hub(
    loopback_hub: LoopbackHub, run: Callable[..., Path], tiny_world: Any, capsys: Any
) -> None:
    assert upload(run(d_in=tiny_world.d_model), REPO) == 0
    flags = (
        "--architecture standard --d_sae 16 --training_tokens 64 --heldout_tokens 0 --lr 1e-9 "
        "--train_batch_size_tokens 32 --context_size 8 --store_batch_size_prompts 4 "
        "--n_batches_in_buffer 8 --normalize_activations none --output_path again "
        "--from_pretrained_path"
    )
    assert main(["train", *flags.split(), f"{REPO}:none"]) == 2
    assert f"{REPO} has no SAE 'none'" in capsys.readouterr().err
    assert main(["train", *flags.split(), f"{REPO}:demo"]) == 0
    weights = [load_file(f"{name}/sae_weights.safetensors") for name in ("demo", "again")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-5, rtol=0)
    assert f"from_pretrained_path: {REPO}:demo" in Path("again/run.yaml").read_text()


def test_results_go_along_and_stay(
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    evaluated: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, other = run(), run("other", seed=1)
    evaluated(folder)
    evaluated(other, "others")
    assert upload(folder, REPO) == 0
    assert "results are taken from evaluations" in capsys.readouterr().out
    result = Result.model_validate_json(
        loopback_hub.files(REPO)["demo/results/core-seed1-abc.json"]
    )
    assert result.sae.source == f"{REPO}:demo"
    assert "0.8125" in loopback_hub.files(REPO)["README.md"].decode()

    second = evaluated(folder, "second", suite="scr")
    assert upload(folder, REPO, "--results", "others", second) == 0
    assert {name for name in inside(loopback_hub) if "results" in name} == {
        f"results/{suite}-seed1-abc{kind}.json" for suite in ("core", "scr")
        for kind in ("", ".saebench")
    }  # fmt: skip
    card = loopback_hub.files(REPO)["README.md"].decode()
    assert "0.8125" in card
    assert "scr" in card

    # as another's run folder: downloaded with its results, which are of this SAE
    assert upload(f"{REPO}:demo", "me/again", "--results", "others") == 0
    again = loopback_hub.files("me/again")
    assert {name.removeprefix("demo/") for name in again} >= {
        *PUBLISHED,
        "results/scr-seed1-abc.json",
    }
    assert b'"source": "me/again:demo"' in again["demo/results/core-seed1-abc.json"]


def test_results_of_the_same_sae_are_replaced_only_if_wished_and_never_lost(
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    evaluated: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run()
    for suite in ("core", "scr"):
        assert upload(folder, REPO, "--results", evaluated(folder, suite, suite)) == 0
    edit = loopback_hub.files(REPO)
    edit["README.md"] = edit["README.md"].replace(b"### Limits", b"### Limits, by me")
    loopback_hub.repositories[f"models/{REPO}"].commit("main", edit, "edit")
    again = evaluated(folder, "again")
    (file,) = again.glob("*/core-seed1-abc.json")
    file.write_text(file.read_text().replace("0.8125", "0.5625"))
    capsys.readouterr()
    assert upload(folder, REPO, "--results", again) == 2
    assert "other results of demo already, as when an evaluation" in capsys.readouterr().err
    assert upload(folder, REPO, "--results", again, "--overwrite") == 0
    there = loopback_hub.files(REPO)
    assert {name for name in there if "results" in name} == {n for n in edit if "results" in n}
    card = there["README.md"].decode()
    for words in ("0.5625", "scr", "### Limits, by me"):
        assert words in card
    run(seed=1)  # another SAE, of which nothing is known
    assert upload(folder, REPO, "--results", again, "--overwrite") == 0
    assert inside(loopback_hub) == PUBLISHED
    assert "by me" not in loopback_hub.files(REPO)["README.md"].decode()


def test_a_suite_that_failed_is_on_the_card(
    loopback_hub: LoopbackHub, run: Callable[..., Path], evaluated: Callable[..., Path]
) -> None:
    folder = run()
    manifest = evaluated(folder) / "manifest.json"
    found = Manifest.model_validate_json(manifest.read_text())
    found.rows.append(found.rows[0].model_copy(update={"status": "failed", "seed": 2}))
    manifest.write_text(found.model_dump_json())
    assert upload(folder, REPO) == 0
    card = loopback_hub.files(REPO)["README.md"].decode()
    assert "Failed, with some seed at least: core." in card
    assert "seed 1" in card


def test_several_runs_a_branch_and_a_private_repository(
    loopback_hub: LoopbackHub, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run("one"), run("two", seed=1)]
    assert upload(*runs, "--private", REPO) == 0
    assert loopback_hub.repositories[f"models/{REPO}"].private
    assert loopback_hub.titles(REPO)[:2] == ["Upload SAE two", "Upload SAE one"]
    assert upload(run("three", seed=2), REPO, "--revision", "v2/rc") == 0
    assert "load_from_disk" in capsys.readouterr().out
    assert inside(loopback_hub, "three", "v2/rc") == PUBLISHED
    assert inside(loopback_hub, "one", "v2/rc") == PUBLISHED
    assert "--revision v2/rc" in loopback_hub.files(REPO, "v2/rc")["README.md"].decode()
    assert not inside(loopback_hub, "three")

    assert upload(runs[0], "me/public") == 0
    loopback_hub.private_by_default = True
    assert upload(runs[0], "me/usual") == 0
    private = [loopback_hub.repositories[f"models/me/{x}"].private for x in ("public", "usual")]
    assert private == [False, True]
    loopback_hub.requests.clear()
    assert upload(runs[1], "me/public", "--private") == 2
    assert "me/public is public: make it private" in capsys.readouterr().err
    assert not written(loopback_hub)


def test_dry_run(
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = run()
    for name in ("HF_TOKEN", "offline"):
        monkeypatch.delenv(name, raising=False)
        assert upload(folder, REPO, "--dry_run") == 0
        said = capsys.readouterr().out
        for file in PUBLISHED:
            assert f"demo/{file}  (to be sent)" in said
        assert "## demo" in said
        assert "notes.txt" not in said
        assert ("is not known" in said) is (name == "offline")
        loopback_hub.cut(1, times=None)
    assert not written(loopback_hub)
    loopback_hub.heal()
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token("me"))
    upload(folder, REPO)
    capsys.readouterr()
    loopback_hub.requests.clear()
    assert upload(folder, REPO, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "nothing was sent" in said
    assert "(to be sent)" not in said
    assert not written(loopback_hub)


# -- what is there ---------------------------------------------------------------------------------


def test_existing_files_are_replaced_only_if_wished(
    loopback_hub: LoopbackHub, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    assert upload(folder, REPO) == 0
    before = loopback_hub.files(REPO)
    assert upload(folder, REPO) == 0
    assert "demo: there already" in capsys.readouterr().out
    assert loopback_hub.titles(REPO) == ["Upload SAE demo", "initial commit"]

    (folder / "figures" / "loss_and_l0.png").rename(folder / "figures" / "firing_by_position.png")
    run(seed=1)
    (folder / "figures" / "loss_and_l0.png").unlink()
    loopback_hub.requests.clear()
    assert upload(run("fine"), folder, REPO) == 2  # and the other one is not sent either
    said = capsys.readouterr().err
    assert "has another SAE demo already" in said
    assert "demo/sae_weights.safetensors" in said
    assert not written(loopback_hub)
    assert loopback_hub.files(REPO) == before

    assert upload(folder, REPO, "--overwrite") == 0
    assert inside(loopback_hub) == {*PUBLISHED, "figures/firing_by_position.png"} - {
        "figures/loss_and_l0.png"
    }
    weights = (folder / "sae_weights.safetensors").read_bytes()
    assert loopback_hub.files(REPO)["demo/sae_weights.safetensors"] == weights


def test_an_edit_of_the_card_meanwhile_survives(
    loopback_hub: LoopbackHub, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody commits between our reading and our commit, and the Hub answers 412."""
    assert upload(run("first"), REPO) == 0
    repository = loopback_hub.repositories[f"models/{REPO}"]
    edits: list[str] = []

    class Meddler(hub.Repository):
        def _plan(self, *arguments: Any) -> hub.Commit:
            plan = super()._plan(*arguments)
            if edits and len(edits) < 3:
                files = loopback_hub.files(REPO)
                edits.append(f"An edit, number {len(edits)}.")
                files["README.md"] += f"\n{edits[-1]}\n".encode()
                repository.commit("main", files, "edit")
            return plan

        def send(self, *arguments: Any) -> bool:
            edits.append("begin")
            return super().send(*arguments)

    monkeypatch.setattr(hub, "Repository", Meddler)
    assert upload(run("second", seed=1), REPO) == 0
    assert loopback_hub.titles(REPO)[:3] == ["Upload SAE second", "edit", "edit"]
    card = loopback_hub.files(REPO)["README.md"].decode()
    for text in ("## first", "## second", "An edit, number 1.", "An edit, number 2."):
        assert text in card


# -- what breaks -----------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize("heard", [[True], [False, True]], ids=["after", "both"])
def test_cut_at_every_request(
    heard: list[bool],
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether the network is gone from then on, or once; before the Hub has heard, or after."""
    monkeypatch.setattr(base_hub, "TRIES", 2)
    folder = run()
    assert upload(folder, REPO) == 0
    count = len(loopback_hub.requests)
    assert count > 10
    outcomes = set()
    for number in range(1, count + 1):
        for applied in heard:
            for times in (1, None):
                loopback_hub.repositories.clear()
                loopback_hub.objects.clear()
                loopback_hub.cut(number, applied, times)
                code = upload(folder, REPO)
                assert (code == 0) is (times == 1), (number, applied)
                there = inside(loopback_hub)
                assert there in (set(), PUBLISHED), (number, applied, there)
                assert ("README.md" in loopback_hub.files(REPO)) is bool(there)
                outcomes.add((times, bool(there)))
                loopback_hub.heal()
                assert upload(folder, REPO) == 0
                assert inside(loopback_hub) == PUBLISHED
                assert loopback_hub.titles(REPO) == ["Upload SAE demo", "initial commit"]
    assert outcomes == {(1, True), (None, False), (None, True)}  # the last: at the commit's answer
    assert "or the connection to it broke" in capsys.readouterr().out


@pytest.mark.parametrize("status", [429, 503])
def test_storms(
    status: int,
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run()
    for part in ("revision", "create", "validate", "preupload", "batch", "lfs-storage", "commit"):
        loopback_hub.fail(part, status, times=1)
    assert upload(folder, REPO) == 0
    assert inside(loopback_hub) == PUBLISHED
    said = capsys.readouterr().err
    assert f"({status}); try 2 of 6 in {0 if status == 429 else 1} s" in said
    assert waits

    monkeypatch.setattr(base_hub, "TRIES", 3)
    loopback_hub.repositories.clear()
    loopback_hub.objects.clear()
    loopback_hub.fail("commit/", status)
    assert upload(folder, run("other", seed=1), REPO) == 1
    said = capsys.readouterr().out
    for name in ("demo", "other"):
        assert f"FAILED: {name}: {REPO}: " in said
    assert f"({status})" in said
    assert not inside(loopback_hub)
    loopback_hub.heal()
    assert upload(folder, folder.with_name("other"), REPO) == 0
    assert inside(loopback_hub, "other") == PUBLISHED


def test_one_that_fails_does_not_keep_the_others(
    loopback_hub: LoopbackHub, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_hub, "TRIES", 1)
    runs = [run("one"), run("two", seed=1), run("three", seed=2)]
    assert upload(runs[0], REPO) == 0
    loopback_hub.fail("commit/", 500, times=1)
    assert upload(*runs, REPO) == 1
    there = [bool(inside(loopback_hub, name)) for name in ("one", "two", "three")]
    assert there == [True, False, True]
    assert upload(*runs, REPO) == 0
    assert inside(loopback_hub, "two") == PUBLISHED


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """A function that lets no file grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_download_that_breaks_leaves_nothing_half(
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    small_files: Callable[[int], None],
) -> None:
    assert upload(run(), REPO) == 0
    source, cache = f"{REPO}:demo", tmp_path / "hub-cache" / "hub"

    def downloaded() -> list[Path]:
        return list(cache.rglob("snapshots/*/demo/sae_weights.safetensors"))

    loopback_hub.truncate("sae_weights")
    assert upload(source, "me/again") == 2
    said = capsys.readouterr().err
    assert f"{source} cannot be downloaded: the Hub cannot be reached, or the connection" in said
    assert "HF_HUB_OFFLINE=1 takes what was downloaded before" in said
    assert not downloaded()
    loopback_hub.heal()
    small_files(1000)
    assert upload(source, "me/again") == 2
    assert f"{source} cannot be downloaded: " in capsys.readouterr().err
    assert not downloaded()
    small_files(10_000_000)
    assert upload(source, "me/again") == 0
    assert len(downloaded()) == 1
    assert loopback_hub.files("me/again")["demo/cfg.json"]
    assert upload(f"{REPO}:none", "me/again") == 2
    assert "has no SAE 'none'" in capsys.readouterr().err


def test_a_hub_that_fails_gives_nothing_old(
    loopback_hub: LoopbackHub, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(run(), REPO) == 0
    assert base_hub.local(f"{REPO}:demo").is_dir()
    assert upload(run("later", seed=1), REPO) == 0
    loopback_hub.fail("", 503)
    for name in ("demo", "later"):
        with pytest.raises(errors.HubError, match=rf"{name} cannot be downloaded: the Hub fails"):
            base_hub.local(f"{REPO}:{name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert base_hub.local(f"{REPO}:demo").is_dir()
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a//b", ".", "*", "de[m]o", "a\\b"])
def test_names_of_saes_on_the_hub(name: str, loopback_hub: LoopbackHub) -> None:
    with pytest.raises(errors.HubError, match="is no name of an SAE"):
        base_hub.local(f"{REPO}:{name}")
    assert not loopback_hub.requests


# -- who may not -----------------------------------------------------------------------------------


def test_tokens(
    loopback_hub: LoopbackHub,
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, said = run(), ""
    assert upload(run("before", seed=1), REPO) == 0
    loopback_hub.requests.clear()

    def refused(code: int, *parts: str, repo: str = REPO) -> None:
        nonlocal said
        capsys.readouterr()
        assert upload(folder, repo) == code
        captured = capsys.readouterr()
        said += captured.out + captured.err
        for part in parts:
            assert part in captured.out + captured.err

    monkeypatch.delenv("HF_TOKEN")
    refused(2, "there is no token", "hf auth login", "HF_TOKEN")
    assert not loopback_hub.requests
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrongwrongwrongwron")
    refused(2, "does not accept the token", "hf auth login")
    reading = loopback_hub.token("me", "read")
    monkeypatch.setenv("HF_TOKEN", reading)
    refused(1, "FAILED: demo: me/saes: me is logged in with a token that can only read")
    refused(1, "can only read", repo="me/new")
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token("you", organizations=("lab",)))
    refused(1, "you may not write to me/saes, whose owner is me", "you, lab")
    refused(1, "you may not write to nobody/saes", repo="nobody/saes")
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token("me"))
    loopback_hub.fail("commit/", 403)
    refused(1, "FAILED: demo: me/saes: HfHubHTTPError", "told to fail")
    assert not inside(loopback_hub)
    for token in (*loopback_hub.tokens, "hf_wrong"):
        assert token not in said
    assert reading in str(loopback_hub.requests)  # it was there to be shown


def test_all_folders_that_are_missing_are_named(loopback_hub: LoopbackHub, capsys: Any) -> None:
    assert upload("nope", "nope2", REPO) == 2
    said = capsys.readouterr().err
    assert "nope is no folder" in said
    assert "nope2 is no folder" in said
    assert not loopback_hub.requests


@pytest.mark.parametrize("repo", ["me", "a/b/c", "me/my saes", "me/..", "../saes", "me/-x"])
def test_names_of_repositories(
    repo: str, loopback_hub: LoopbackHub, run: Callable[..., Path], capsys: Any
) -> None:
    assert upload(run(), repo) == 2
    assert "repository" in capsys.readouterr().err
    assert not loopback_hub.requests


@pytest.mark.parametrize("branch", ["a b", "../x", "a..b", "refs/heads/x", "0123456789abcdef"])
def test_names_of_branches(
    branch: str, loopback_hub: LoopbackHub, run: Callable[..., Path], capsys: Any
) -> None:
    assert upload(run(), REPO, "--revision", branch) == 2
    assert "is no branch" in capsys.readouterr().err
    assert not loopback_hub.requests


def test_names_of_saes(loopback_hub: LoopbackHub, run: Callable[..., Path], capsys: Any) -> None:
    for name in ("my run", ".hidden", "a..b", "ünï", "-x"):
        assert upload(f"{run(name)}", REPO) == 2, name
        assert "rename the folder" in capsys.readouterr().err
    assert upload(run("a/same"), run("b/same"), REPO) == 2
    assert "would both be called same" in capsys.readouterr().err
    assert upload("nowhere", REPO) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    assert upload(run("one"), run("two")) == 2
    assert "last the repository" in capsys.readouterr().err
    assert not loopback_hub.requests


@pytest.mark.parametrize("file", ["sae_weights.safetensors", "sparsity.safetensors", "cfg.json"])
def test_damaged_files_are_named_before_anything_is_sent(
    file: str, loopback_hub: LoopbackHub, run: Callable[..., Path], capsys: Any
) -> None:
    good, bad = run("good"), run("bad")
    content = (bad / file).read_bytes()
    for left in (0, len(content) // 2, len(content) - 1):
        (bad / file).write_bytes(content[:left])
        assert upload(good, bad, REPO) == 2, left
        said = capsys.readouterr().err
        assert f"{bad / file} is damaged" in said
    assert not loopback_hub.requests


def test_weights_of_another_shape(
    loopback_hub: LoopbackHub, run: Callable[..., Path], capsys: Any
) -> None:
    folder = run()
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_sae": 17}))
    assert upload(folder, REPO) == 2
    assert "sae_weights.safetensors and cfg.json do not fit together" in capsys.readouterr().err
    assert not loopback_hub.requests
