"""`evaluate` on SAEs of language models in folders, and what it knows before it loads one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import D_IN, save
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_plugins.entrypoints.main import main
from sae_plugins.runs.language_models.loader import Loader

pytestmark = pytest.mark.usefixtures("sketched")

TINY = {
    "core": "--core.n_eval_reconstruction_batches 2 --core.n_eval_sparsity_variance_batches 2 "
    "--core.batch_size_prompts 4 --core.context_size 32",
    "sparse-probing": "--sparse-probing.dataset_names fancyzhx/ag_news --sparse-probing.k_values 1 "
    "--sparse-probing.probe_train_set_size 40 --sparse-probing.probe_test_set_size 24 "
    "--sparse-probing.context_length 16",
    "tpp": "--tpp.n_values 2 --tpp.train_set_size 40 --tpp.test_set_size 24 "
    "--tpp.context_length 16 --tpp.dataset_names LabHC/bias_in_bios_class_set1",
    "sae-probes": "--sae-probes.dataset_names 118_us_state_CA --sae-probes.ks 1 "
    "--sae-probes.context_length 16",
    "absorption": "--absorption.max_k_value 2 --absorption.k_sparse_probe_num_epochs 2",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def sae(model: Path, tmp_path: Path) -> Callable[..., str]:
    """Saves a random SAE of the model, and gives its folder."""

    def make(name: str, hook: str = "model.layers.1", d_in: int = D_IN) -> str:
        metadata = SAEMetadata(
            model_name=str(model), hook_name=hook, prepend_bos=True,
            model_class_name="AutoModelForCausalLM",
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(name))
            made = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=64, metadata=metadata))
            with torch.no_grad():
                made.W_enc.copy_(made.W_dec.T)
        made.save_model(tmp_path / name)
        return str(tmp_path / name)

    return make


def evaluate(saes: list[str], suites: list[str], out: Path, *flags: str) -> int:
    settings = [word for suite in suites for word in TINY[suite].split()]
    line = ["evaluate", *saes, "--suite", *suites, "--data", "world", "--output_path", str(out)]
    line += ["--cache_path", str(out.parent / "cache"), "--device", "cpu"]
    return main([*line, *settings, *flags])


def results(out: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((out / "manifest.json").read_text())["rows"]
    return {row["suite"]: json.loads((out / row["file"]).read_text()) for row in rows}


@pytest.mark.ci
def test_scores_of_a_model_that_is_not_listed(
    model: Path, sae: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TransformerLens' conversion and its bridge say the same of an SAE, by its layer's name."""
    suites, found = ["core", "sparse-probing", "tpp", "sae-probes"], []
    before = sorted(path.name for path in model.iterdir())
    for number, (flags, kind) in enumerate({
        (): "HookedTransformer, converted by TransformerLens",
        ("--model_class_name", "TransformerBridge"): "TransformerBridge",
    }.items()):  # fmt: skip
        out = tmp_path / f"out{number}"
        assert evaluate([sae("one")], suites, out, *flags) == 0
        found.append(results(out))
        assert f"{model}: {kind}" in capsys.readouterr().out
        for result in found[-1].values():
            assert result["model"]["name"] == model.name  # and not where it is
            assert result["model"]["loaded_as"] == kind
            assert result["sae"]["hook_name"] == "blocks.1.hook_resid_post"
            assert any("it was trained at model.layers.1" in text for text in result["warnings"])
    assert sorted(path.name for path in model.iterdir()) == before  # nothing is written there
    for suite in suites:
        one, other = (each[suite]["metrics"] for each in found)
        assert one.keys() == other.keys()
        for name, value in one.items():
            if suite == "core":
                assert value["value"] == pytest.approx(other[name]["value"], rel=1e-3, abs=1e-4)
    assert found[0]["core"]["model"]["hash"] != found[1]["core"]["model"]["hash"]


@pytest.mark.ci
def test_letters_that_cannot_be_read_are_looked_for_once(
    sae: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They are the language model's alone: no SAE is looked at."""
    from sae_bench.evals.absorption import common

    calls, own = [], common.train_and_save_probes

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return own(*args, **kwargs)

    monkeypatch.setattr(common, "train_and_save_probes", counted)
    monkeypatch.setattr("sae_plugins.eval_suites.absorption.run_absorption", None)
    assert evaluate([sae("one"), sae("three")], ["absorption"], tmp_path / "out") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "first letters" in said
    assert "can be read off" in said
    assert len(calls) == 1


def test_a_dry_run_says_what_the_run_would_say(
    model: Path, sae: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All of it is in the model's config: nothing is loaded for it."""
    monkeypatch.setattr(Loader, "load", None)
    saes = [sae("deep", "model.layers.9"), sae("wide", d_in=48)]
    reasons = (
        f"{model} has no hook 'blocks.9.hook_resid_post'; did you mean",
        f"wide takes activations of d_in 48, and those of {model} at blocks.1.hook_resid_post "
        "have 32",
    )
    for flags in (["--dry_run"], []):
        assert evaluate(saes, ["core"], tmp_path / "out", *flags) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert all(reason in said for reason in reasons)
    long = ["--core.context_size", "65"]
    for flags in (["--dry_run"], []):
        assert evaluate([sae("good")], ["core"], tmp_path / "out", *long, *flags) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert f"--core.context_size 65 is too large: {model} reads 64 tokens" in said
    assert evaluate([sae("good")], ["core"], tmp_path / "out", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "to do: 1 rows of 1" in said
    assert f"{model}: HookedTransformer, converted by TransformerLens" in said
