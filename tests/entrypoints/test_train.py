"""`sae-plugins train` from end to end, on a model so small that a run takes a second."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_lens import SAE
from safetensors.torch import load_file

from sae_plugins import world
from sae_plugins.entrypoints.main import main
from sae_plugins.framework.plugin import Plugin

RUN = [
    *("--training_tokens", "2000", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "256"),
]
"""31 steps, and one of what is left of the 2000 tokens."""
OTHER = "--normalize_activations expected_average_only_in --model_name"
FILES = {
    "files.json",
    *("cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json"),
    *("run.yaml", "metrics.jsonl", "summary.json"),
    *("figures/loss_and_l0.png", "figures/firing_by_position.png"),
}


@pytest.fixture(autouse=True)
def folder(
    tiny_world: Any, sketched: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """An empty working directory, and a tiny model for the embedded world."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def train(output: str, *arguments: str, code: int = 0) -> Path:
    assert main(["train", *RUN, "--output_path", output, *arguments]) == code
    return Path(output)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "sae_weights.safetensors")


def same(left: Path, right: Path) -> bool:
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    return all(tensor.equal(second[name]) for name, tensor in first.items())


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


# -- a whole run -------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_that_sae_lens_loads(
    tiny_world: Any, drawn: None, capsys: pytest.CaptureFixture[str]
):
    run = train("run", "--plugin", "hybrid-order", "--reorder.start", "5", "--reorder.interval=8")
    said = capsys.readouterr().out
    drawn = {f"figures/metrics/{name}.png" for name in ("coefficients", "input-norm-l1", "reorder")}
    assert files(run) == FILES | drawn | {"metrics_by_feature.jsonl"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in run.rglob("*.png"))
    sae = SAE.load_from_disk(str(run))
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (tiny_world.d_model, 32)
    assert sae.cfg.metadata.sae_plugins["methods"] == ["hybrid-order"]
    assert sae.cfg.metadata.model_name == world.NAME
    numbers = summary(run)
    assert numbers["training/steps"] == 32
    assert -1 < numbers["heldout/explained_variance"] <= 1
    assert numbers["heldout/tokens"] >= 256
    assert "reorder/reorderings" in numbers
    config = json.loads((run / "runner_cfg.json").read_text())
    assert (config["output_path"], config["checkpoint_path"]) == ("run", None)
    plan, table = said.split("\n\n")[0], said
    assert (
        "reorder (interval 8, start 5) -> input-norm-l1 -> unit-norm-decoder -> nan-guard" in plan
    )
    assert "32 steps of 64 tokens, seed 42" in plan
    assert "explained_variance" in table
    assert 'SAE.load_from_disk("run")' in table
    assert "metrics/reorder.png" in table
    assert "sae-plugins features run" in table
    assert str(Path.cwd()) not in "".join((run / n).read_text() for n in ("cfg.json", "run.yaml"))


def test_the_summary_s_explained_variance_is_that_of_the_saved_sae(tiny_world: Any):
    run = train("run")
    sae = SAE.load_from_disk(str(run))
    tokens = torch.tensor(tiny_world.text("heldout")["tokens"])[:16]  # 256 tokens
    hook = "blocks.1.hook_resid_post"
    _, cache = tiny_world.model().run_with_cache(tokens, names_filter=[hook], prepend_bos=False)
    x = cache[hook].reshape(-1, tiny_world.d_model)
    with torch.no_grad():
        error = (x - sae(x)).square().sum()
    expected = 1 - error / (x - x.mean(0)).square().sum()
    assert summary(run)["heldout/explained_variance"] == pytest.approx(expected.item(), abs=1e-5)


def test_run_yaml_reproduces_the_run_bit_for_bit(tiny_world: Any):
    arguments = ("--plugin", "hybrid-order", "--reorder.start", "5", "--reorder.interval", "8")
    first = train(
        "first", *arguments, "--seed", "3", "--without", "input-norm-l1", "--clip", "none"
    )
    assert main(["train", "--recipe", "first/run.yaml", "--output_path", "again"]) == 0
    again = Path("again")
    assert same(first, again)
    one, two = ((run / "run.yaml").read_text() for run in (first, again))
    assert one == two
    recipe = yaml.safe_load(one)
    assert recipe["clip"] is None
    assert recipe["d_in"] == tiny_world.d_model
    assert recipe["adam_beta1"] == 0.9  # SAELens' default, said aloud
    assert set(recipe["versions"]) >= {"sae-plugins", "sae-lens", "torch", "python"}


@pytest.mark.ci
def test_a_seed_decides_everything():
    zero, again = train("zero", "--seed", "0"), train("again", "--seed", "0")
    one = train("one", "--seed", "1")
    assert same(zero, again)
    assert not same(zero, one)


def test_the_seed_orders_the_data(tiny_world: Any, monkeypatch: pytest.MonkeyPatch):
    from sae_plugins.runs.setup import SAELensSettings
    from sae_plugins.runs.texts.splits import load_text

    def order(seed: int) -> list[list[int]]:
        text = load_text(SAELensSettings(world.NAME, seed=seed), tiny_world.model())
        return [row["tokens"] for row in text.train]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_checkpoints_are_in_the_run_s_folder():
    run = train("run", "--n_checkpoints", "1")
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert (checkpoint / "trainer_state.pt").is_file()
    assert checkpoint.name.isdigit()


@pytest.mark.parametrize(
    "arguments",
    [
        "--architecture topk --k 4 --plugin reorder",
        pytest.param(
            "--architecture matryoshka_batchtopk --k 4 --plugin reorder", marks=pytest.mark.ci
        ),
        "--architecture jumprelu --plugin input-norm-l1",
        "--architecture matching_pursuit --max_iterations 3 --training_tokens 300",
        "--hook_name blocks.1.attn.hook_z --heldout_tokens 0",
        "--hook_name blocks.1.attn.hook_z --hook_head_index 1",
        "--exclude_special_tokens 0 1 --seqpos_slice 1 -1 --prefetch_llm_batches",
    ],
)
def test_other_settings(tiny_world: Any, arguments: str):
    run = train("run", *arguments.split())
    assert SAE.load_from_disk(str(run)).cfg.d_in in (tiny_world.d_model, 8)
    assert ("heldout/l0" in summary(run)) == ("--heldout_tokens 0" not in arguments)


def test_the_default_folder_is_named_after_the_run():
    assert main(["train", *RUN, "--plugin", "reorder", "--seed", "5"]) == 0
    assert Path("runs/reorder_standard_sae-plugins-world_seed5/cfg.json").is_file()


# -- a dataset of one's own --------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
def test_held_out_documents_are_not_trained_on(tiny_world: Any, folder: Path, streaming: bool):
    from sae_plugins.runs.setup import SAELensSettings
    from sae_plugins.runs.texts.splits import load_text

    (folder / "data").mkdir()
    documents = [
        {"tokens": [i // 10, i % 10] * (tiny_world.context // 2), "id": i} for i in range(100)
    ]
    lines = "\n".join(json.dumps(document) for document in documents)
    (folder / "data" / "train.jsonl").write_text(lines)
    runner = {"dataset_path": "data", "streaming": streaming, "store_batch_size_prompts": 4}
    runner |= {"context_size": tiny_world.context}
    text = load_text(
        SAELensSettings("x", seed=1, heldout_tokens=64, runner=runner), tiny_world.model()
    )
    trained = [10 * row["tokens"][0] + row["tokens"][1] for row in text.train]
    held = [10 * row["tokens"][0] + row["tokens"][1] for row in text.heldout]
    assert held == list(range(8))  # (64 + 4 x 16) tokens of the first documents
    assert sorted([*held, *trained]) == list(range(100))
    assert trained != sorted(trained)


def test_a_dataset_that_is_too_small(
    tiny_world: Any, folder: Path, capsys: pytest.CaptureFixture[str]
):
    tiny_world.text("train").select(range(5)).save_to_disk("data")
    train("run", "--dataset_path", "data", code=2)
    assert "data is too small" in capsys.readouterr().err
    tiny_world.text("train").rename_column("tokens", "words").save_to_disk("other")
    train("run", "--dataset_path", "other", code=2)
    assert "has the columns words: one must be called tokens or" in capsys.readouterr().err
    assert not Path("run").exists()


def test_text_that_is_read_twice_is_news(tiny_world: Any, caplog: pytest.LogCaptureFixture):
    tiny_world.text("train").select(range(60)).save_to_disk("data")
    train("run", "--dataset_path", "data")
    assert caplog.text.count("ends after") == 1
    assert re.search(
        r"data ends after \d+ tokens \(\d\d prompts\), and the run needs up to [\d,]+ \(2,000 to "
        r"train on, .*so that it is trained on the same text again; give more text, or lower --t",
        caplog.text,
    )


# -- what goes wrong when the model is there ---------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--hook_name blocks.9.hook_resid_post", "did you mean"),
        ("--hook_name nonsense", "blocks.N.hook_resid_post"),
        ("--d_in 64", "--d_in 64 is wrong: blocks.1.hook_resid_post of sae-plugins-world has 16"),
        ("--hook_name blocks.0.attn.hook_z --hook_head_index 9", "has heads 0 to 1"),
        ("--device banana", "--device banana cannot be used"),
        ("--n_batches_in_buffer 1", "must hold the --train_batch_size_tokens 64"),
        ("--architecture topk --k 3.5", "need a whole number"),
        ("--seqpos_slice 3 2 0", "--seqpos_slice 3 2 0 leaves none of"),
        (
            "--context_size 128",
            "--context_size 128 is too large: sae-plugins-world reads 16 tokens",
        ),
        ("--architecture topk --k 10000", "--k 10000 must be at most the --d_sae 32"),
        ("--store_batch_size_prompts 8192", "the held-out text is less than"),
        ("--n_checkpoints 1000000000", "is more than the run's 31 steps"),
        (
            "--d_sae 999999999",
            "528.0 GB for the SAE with its gradients and Adam's moments (--d_sae",
        ),
        ("--d_sae 400000000", "of memory on cpu, where "),
        (f"{OTHER} tiny --hook_name x", "--model_name tiny needs --dataset_path"),
        (f"{OTHER} tiny --dataset_path x", "--model_name tiny needs --hook_name"),
        (
            f"{OTHER} gemma-2-2bb --hook_name x --dataset_path y",
            "cannot be loaded as a HookedTransformer: did you mean 'gemma-2-2b'",
        ),
        ("--dataset_path nowhere", "--dataset_path nowhere cannot be loaded"),
    ],
)
def test_bad_input(
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    train("run", *arguments.split(), code=2)
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not Path("run").exists()


def test_a_disk_that_is_too_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from sae_plugins.runs import run_folder as runs

    usage = runs.shutil.disk_usage
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    train("run", code=2)
    assert "1.0 KB are free" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(capsys: pytest.CaptureFixture[str]):
    run = train("run", "--lr", "1e30", "--recorder.every", "1", code=1)
    said = capsys.readouterr()
    assert "sae-plugins train: error: " in said.err
    assert "the loss is not finite since step" in said.err
    assert "recorded until then is in run/unfinished" in said.out
    assert files(run) == {"unfinished/metrics.jsonl", "unfinished/run.yaml"}
    train("run")  # what a failed run left is no reason to refuse, and stays
    assert files(run) == {*FILES, "unfinished-1/metrics.jsonl", "unfinished-1/run.yaml"}


def test_resuming_with_plugins_is_refused(capsys: pytest.CaptureFixture[str]):
    Path("checkpoint").mkdir()
    for name in ("trainer_state.pt", "activation_scaler.json", "sae_weights.safetensors"):
        Path("checkpoint", name).touch()
    Path("checkpoint", "activations_store_state.safetensors").touch()
    train("run", "--plugin", "reorder", "--resume_from_checkpoint", "checkpoint", code=1)
    assert f"cannot resume from {Path('checkpoint').absolute()}" in capsys.readouterr().err


def test_resuming_from_no_checkpoint_is_refused(capsys: pytest.CaptureFixture[str]):
    train("run", "--resume_from_checkpoint", "nowhere", code=2)
    assert (
        f"--resume_from_checkpoint {Path('nowhere').absolute()} is no folder"
        in capsys.readouterr().err
    )


# -- the folder --------------------------------------------------------------------------------


def test_overwrite_replaces_a_run_and_nothing_else(capsys: pytest.CaptureFixture[str]):
    run = train("run", "--n_checkpoints", "1")
    (run / "notes.txt").write_text("mine")
    (run / "figures" / "own.png").write_text("mine")
    (run / "checkpoints" / "note").write_text("mine")
    before = weights(run)
    train("run", "--seed", "1", code=2)
    assert "run is not empty" in capsys.readouterr().err
    train("run", "--seed", "1", "--overwrite")
    assert files(run) == {*FILES, "notes.txt", "figures/own.png", "checkpoints/note"}
    assert not weights(run)["W_dec"].equal(before["W_dec"])


def test_a_full_disk_costs_nothing_of_an_earlier_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from sae_lens.saes import sae as module
    from safetensors import SafetensorError

    run = train("run")
    before = {name: (run / name).read_bytes() for name in FILES}

    def full(_: Any, path: Any, *args: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise SafetensorError("IoError(Os { code: 28, message: 'No space left on device' })")

    monkeypatch.setattr(module, "save_file", full)
    train("run", "--overwrite", "--seed", "1", code=1)
    said = capsys.readouterr()
    assert "run/unfinished/sae_weights.safetensors could not be written" in said.err
    assert "no space left on the disk" in said.err
    assert {name: (run / name).read_bytes() for name in FILES} == before
    assert not (run / "unfinished" / "sae_weights.safetensors").exists()


def test_a_full_disk_while_a_checkpoint_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 448 vs 342")

    monkeypatch.setattr(torch, "save", full)
    train("run", "--n_checkpoints", "1", code=1)
    assert "could not be written: the disk may be full" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, pytest.param(RuntimeError, marks=pytest.mark.ci)]
)
def test_what_fails_after_the_sae_is_saved_does_not_cost_it(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from sae_lens import LanguageModelSAETrainingRunner as Runner

    save = Runner.save_final_sae

    def failing(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        raise error("wandb, for example")

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "save_final_sae", failing)
        if error is RuntimeError:
            with pytest.raises(RuntimeError):
                train("run")
        else:
            train("run", code=130)
    assert "the trained SAE is in run/unfinished" in capsys.readouterr().out
    SAE.load_from_disk("run/unfinished")
    train("run", code=2)
    assert "run is not empty (it holds unfinished)" in capsys.readouterr().err
    train("run", "--overwrite")
    SAE.load_from_disk("run/unfinished-1")


@pytest.mark.ci
def test_a_run_that_cannot_be_moved_into_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from sae_plugins.runs import journal

    run = train("run")
    before = {name: (run / name).read_bytes() for name in FILES}
    (run / "figures").rename(run / "pictures")
    (run / "figures").write_text("in the way")
    train("run", "--overwrite", "--seed", "1", code=1)
    said = capsys.readouterr()
    assert "could not be moved to run, where nothing was changed" in said.err
    assert "the trained SAE is in run/unfinished" in said.out
    for name, contents in before.items():
        assert (run / name.replace("figures", "pictures")).read_bytes() == contents
    SAE.load_from_disk("run/unfinished")

    (run / "figures").unlink()
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target) == run / "cfg.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "replace", full)
        train("run", "--overwrite", "--seed", "1", code=1)
    said = capsys.readouterr()
    assert "moving the trained SAE to run failed" in said.err
    assert "being moved to run; go on with it: sae-plugins train --resume run" in said.out
    assert {path.name for path in (run / "unfinished").iterdir()} >= {"cfg.json"}

    assert main(["train", "--resume", "run"]) == 0
    said = capsys.readouterr()
    assert "explained_variance" in said.out
    assert "loading" not in said.out
    moved = {name.replace("figures", "pictures") for name in FILES if "figures" in name}
    earlier = {f"unfinished-1/{name}" for name in (*FILES, "trained.json", "training_summary.json")}
    assert files(run) == {*FILES, *moved, *earlier}


def test_a_folder_belongs_to_one_run_at_a_time(capsys: pytest.CaptureFixture[str]):
    from sae_plugins.base.errors import PluginError
    from sae_plugins.runs.run_folder import RunFolder

    first = RunFolder(Path("run"))
    first.check(overwrite=False)
    first.start({}, {})
    train("run", "--overwrite", code=2)
    assert "run: another run is writing into it" in capsys.readouterr().err
    assert Path("run/unfinished/run.yaml").is_file()
    with pytest.raises(PluginError, match="another run"):
        RunFolder(Path("run")).check(overwrite=False)
    first.release()
    RunFolder(Path("run")).check(overwrite=False)


def test_another_run_s_checkpoints_are_not_overwritten(capsys: pytest.CaptureFixture[str]):
    own = ("--checkpoint_path", "own", "--n_checkpoints", "1")
    train("run", *own)
    assert list(Path("own").glob("*/trainer_state.pt"))
    train("other", *own, code=2)
    assert f"--checkpoint_path {Path('own').absolute()} is not empty" in capsys.readouterr().err
    train("other", *own, "--overwrite")


def test_what_is_not_a_number_is_null(monkeypatch: pytest.MonkeyPatch):
    from sae_plugins.runs import language_model

    monkeypatch.setattr(language_model, "heldout_metrics", lambda *_: [{"mse": float("nan")}])
    assert summary(train("run"))["heldout/mse"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_no_traceback(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from sae_plugins.framework.run import Run
    from sae_plugins.mechanisms.reorder import Reorder

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    step_ended = Reorder.step_ended
    steps = []

    def interrupting(self: Plugin, run: Run, output: Any) -> None:
        steps.append(run.step)
        if run.step == 15:
            os.kill(os.getpid(), number)
        step_ended(self, run, output)

    interrupting.__dict__.update(step_ended.__dict__)
    monkeypatch.setattr(Reorder, "step_ended", interrupting)
    run = train("run", "--plugin", "reorder", code=130)
    assert steps[-1] == 15
    said = capsys.readouterr()
    assert "sae-plugins train: interrupted" in said.err
    assert "go on with it: sae-plugins train --resume run" in said.out
    checkpoint = "unfinished/resume/step-000000015.safetensors"
    assert files(run) == {"unfinished/metrics.jsonl", "unfinished/run.yaml", checkpoint}
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
