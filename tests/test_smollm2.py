"""A real language model from a folder, by the command line: what users do with one.

`python benchmarks/smollm2.py FOLDER` makes the folder; these tests take it from the environment.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import LoopbackHub
from safetensors.torch import load_file

from sae_plugins.entrypoints.main import main

VARIABLE = "SAE_PLUGINS_SMOLLM2"
SMOLLM2 = Path(os.environ.get(VARIABLE, "."))
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(
        VARIABLE not in os.environ,
        reason=f"python benchmarks/smollm2.py FOLDER, then {VARIABLE}=FOLDER pytest -m smollm2",
    ),
]

HUGGING, HOOKED = "model.layers.5", "blocks.5.hook_resid_post"
METHODS = {
    "hybrid-order": f"--reorder.start 4 --reorder.interval 4 --hook_name {HOOKED} --lr 1e-3",
    "hierarchical": f"--hook_name {HUGGING} --model_class_name AutoModelForCausalLM",
    "adaptive-threshold": f"--hook_name {HOOKED} --activation-threshold.start 4",
    "adaptive-orthogonality": f"--hook_name {HUGGING} --model_class_name AutoModelForCausalLM",
}
SMALL = (
    "--streaming false --d_sae 1152 --training_tokens 6144 --train_batch_size_tokens 512 "
    "--context_size 64 --store_batch_size_prompts 8 --n_batches_in_buffer 24 "
    "--heldout_tokens 1000 --device cpu"
)
SUITES = (
    "--suite core scr sparse-probing --data world "
    "--core.n_eval_reconstruction_batches 1 --core.n_eval_sparsity_variance_batches 2 "
    "--core.batch_size_prompts 4 --core.context_size 32 "
    "--sparse-probing.dataset_names fancyzhx/ag_news --sparse-probing.k_values 1 "
    "--sparse-probing.probe_train_set_size 40 --sparse-probing.probe_test_set_size 20 "
    "--sparse-probing.context_length 24 "
    "--scr.pairs professor/nurse --scr.n_values 5 --scr.train_set_size 40 "
    "--scr.test_set_size 24 --scr.context_length 24"
)


def line(method: str, folder: Path) -> list[str]:
    """The words of a command that trains an SAE with a method."""
    where = ["--model_name", str(SMOLLM2 / "model"), "--dataset_path", str(SMOLLM2 / "text")]
    flags = [*shlex.split(SMALL), *shlex.split(METHODS[method])]
    return ["train", "--plugin", method, *where, *flags, "--output_path", str(folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a run with a method, which is trained once."""
    place = tmp_path_factory.mktemp("runs")

    def run(method: str) -> Path:
        folder = place / method
        if not folder.exists():
            assert main(line(method, folder)) == 0
        return folder

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_on_text_with_held_out_text(
    method: str, trained: Callable[[str], Path]
) -> None:
    folder = trained(method)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heldout/tokens"] >= 1000
    assert summary["training/steps"] == 12
    assert 0 < summary["heldout/cosine"] <= 1
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == str(SMOLLM2 / "model")
    assert ("SAELens' proxy" in metadata["model_loaded_as"]) == (HUGGING in METHODS[method])


@pytest.mark.parametrize("method", ["hybrid-order", "hierarchical"])
def test_a_run_that_is_killed_ends_with_the_same_weights(
    method: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [*line(method, folder), "--checkpoint_every", "2"]
    process = subprocess.Popen([sys.executable, "-m", "sae_plugins.entrypoints.main", *command])
    checkpoints = folder / "unfinished" / "resume"
    try:
        while process.poll() is None and not list(checkpoints.glob("*.safetensors")):
            time.sleep(0.02)
        assert process.poll() is None  # it was not faster
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "sae_weights.safetensors").exists()
    assert main(["train", "--resume", str(folder)]) == 0
    one, other = (load_file(f / "sae_weights.safetensors") for f in (folder, trained(method)))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.equal(other[name]), name


def values(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Metrics of an evaluation, by SAE and suite."""
    rows = json.loads((out / "manifest.json").read_text())["rows"]
    assert all(row["status"] == "ok" for row in rows)
    read = {(r["sae"], r["suite"]): json.loads((out / r["file"]).read_text()) for r in rows}
    return {key: result["metrics"] for key, result in read.items()}


@pytest.mark.parametrize("method", ["hierarchical", "hybrid-order"])
def test_more_is_explained_without_bos(method: str, tmp_path: Path) -> None:
    """300 steps each at layer 15, with and without BOS; both are scored without."""
    from sae_lens import SAE

    from sae_plugins.runs.language_model import LanguageModelSetup
    from sae_plugins.settings.command_line import train_flags
    from sae_plugins.settings.settle import settle

    own = {"--hook_name": "blocks.15.hook_resid_post", "--training_tokens": str(300 * 512)}
    lines = {}
    for excluded in ("false", "true"):
        words = line(method, tmp_path / excluded)
        for flag, value in {**own, "--exclude_special_tokens": excluded}.items():
            words = [*words, flag, value] if flag not in words else words
            words[words.index(flag) + 1] = value
        if "--model_class_name" in words:
            words[words.index("--model_class_name") + 1] = "HookedTransformer"
        assert main(words) == 0
        lines[excluded] = words
    setup = LanguageModelSetup(settle(train_flags(lines["true"][1:])).for_saelens())
    saes = [SAE.load_from_disk(str(tmp_path / excluded)) for excluded in ("false", "true")]
    with_bos, without = (scores["explained_variance"] for scores in setup.heldout(saes))
    assert without > with_bos + 0.05


def test_the_methods_are_measured_with_bos_and_without(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "smollm2_methods.py"
    found = tmp_path / "found.json"
    few = ["--steps", "4", "--output", str(found)]
    subprocess.run([sys.executable, str(script), str(SMOLLM2), *few], check=True)
    rows = json.loads(found.read_text())["rows"]
    assert {(row["method"], row["bos"]) for row in rows} == {
        (m, b) for m in METHODS for b in (True, False)
    }
    assert len({row["explained_variance"] for row in rows}) == len(rows) == 8


def test_suites_score_saes_of_both_names(trained: Callable[[str], Path], tmp_path: Path) -> None:
    saes = [str(trained(method)) for method in ("hybrid-order", "hierarchical")]
    cache = ["--cache_path", str(tmp_path / "cache"), "--device", "cpu"]
    out = tmp_path / "hooked"
    assert main(["evaluate", *saes, *SUITES.split(), *cache, "--output_path", str(out)]) == 0
    scores = values(out)
    assert len(scores) == 6
    core = scores["hybrid-order", "core"]
    assert 3 < core["ce_loss_without_sae"]["value"] < core["ce_loss_with_ablation"]["value"]
    assert scores["hierarchical", "scr"]["scr_metric_threshold_5"]["value"] is not None
    assert scores["hierarchical", "sparse-probing"]["llm_test_accuracy"]["value"] > 0.5

    out = tmp_path / "bridge"
    bridge = ["--model_class_name", "TransformerBridge", "--output_path", str(out)]
    assert main(["evaluate", *saes, *SUITES.split(), *cache, *bridge]) == 0
    bridged = values(out)
    for name, metric in core.items():
        expected = pytest.approx(metric["value"], rel=0.01, abs=1e-3)
        assert bridged["hybrid-order", "core"][name]["value"] == expected


def test_it_takes_part_in_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = shlex.split(SMALL)
    flags = {name.removeprefix("--"): yaml.safe_load(value)
             for name, value in zip(train[::2], train[1::2], strict=True)}  # fmt: skip
    model = {
        "train": {
            **flags, "model_name": str(SMOLLM2 / "model"), "hook_name": HUGGING,
            "model_class_name": "AutoModelForCausalLM", "dataset_path": str(SMOLLM2 / "text"),
        },
        "preset": "quick", "data": "world",
        "suites": {"sparse-probing": {
            "dataset_names": ["fancyzhx/ag_news"], "k_values": [1], "probe_train_set_size": 40,
            "probe_test_set_size": 20, "context_length": 24,
        }},
        "target_l0": [16], "sparsity": {"k": [16]},
    }  # fmt: skip
    study = {
        "description": "Does the order matter?", "models": {"smollm2": model}, "reference": "topk",
        "seeds": [0], "compare": ["sparse-probing/sae_top_1_test_accuracy"],
        "arms": {
            "topk": {"kind": "baseline", "train": {"plugin": [], "architecture": "topk"}},
            "reorder": {"kind": "control", "train": {
                "plugin": ["reorder"], "architecture": "topk", "reorder.start": 4,
                "reorder.interval": 4,
            }},
        },
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    run = ["study", "run", "mine.yaml", "--output_path", "study", "--jobs", "1"]
    assert main([*run, "--underpowered"]) == 0
    findings = json.loads(next(Path("study").rglob("findings.json")).read_text())
    assert "smollm2" in json.dumps(findings)
    assert list(Path("study").rglob("saes/*/*/sae_weights.safetensors"))


def test_the_commands_of_its_card_work(
    trained: Callable[[str], Path], loopback_hub: LoopbackHub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, repo = trained("hierarchical"), "me/saes"
    token = loopback_hub.token("me")
    loopback_hub.here(monkeypatch, token)
    monkeypatch.chdir(tmp_path)
    assert main(["upload", str(folder), repo]) == 0
    card = loopback_hub.files(repo)["README.md"].decode()
    loading = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    code = loading.replace("activations)", "__import__('torch').zeros(1, 576))")
    assert loopback_hub.run(code + "\nprint(features.shape)").strip() == "torch.Size([1, 1152])"
    commands = [c for block in re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
                for c in block.splitlines()]  # fmt: skip
    evaluate, download, again = commands
    assert main([*shlex.split(evaluate)[1:], *SUITES.split(), "--suite", "core"]) == 0
    shell = f"import subprocess; subprocess.run({shlex.split(download)!r}, check=True)"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    loopback_hub.run(shell, PATH=path, HF_TOKEN=token)
    assert main(shlex.split(again)[1:]) == 0
    one, other = (load_file(f / "sae_weights.safetensors") for f in (folder, Path("again")))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
