"""A study that finds its activations in a cache is bitwise the one that computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sae_lens.training.activations_store import ActivationsStore

from sae_plugins.base import yaml_files
from sae_plugins.entrypoints.main import main

STUDY: dict[str, Any] = {
    "reference": "l1",
    "seeds": [0, 1],
    "models": {
        "world": {
            "train": {
                "training_tokens": 960,
                "train_batch_size_tokens": 64,
                "context_size": 16,
                "store_batch_size_prompts": 4,
                "n_batches_in_buffer": 8,
                "n_batches_for_norm_estimate": 2,
                "heldout_tokens": 250,
                "d_sae": 32,
            },
            "sparsity": {"l1_coefficient": [1, 4]},
            "suites": {},
        }
    },
    "arms": {
        "l1": {"kind": "baseline"},
        "longer": {"train": {"training_tokens": 1600}},
    },
}
SHORT = ("--jobs", "1")
CACHE = ("--activation_cache", "cache")


@pytest.fixture(autouse=True)
def folder(tiny_world: Any, sketched: None, tmp_path: Path) -> Path:
    """An empty working directory, and a tiny model for the embedded world."""
    return tmp_path


def run(output: str, *arguments: str, code: int = 0, **changes: Any) -> dict[str, bytes]:
    """The weights of all SAEs of a study, by their folders."""
    Path("study.yaml").write_text(yaml_files.dump(STUDY | changes, 96))
    command = ["study", "run", "study.yaml", "--output_path", output, *SHORT, *arguments]
    assert main(command) == code
    found = Path(output).glob("saes/*/*/sae_weights.safetensors")
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def entries() -> list[Path]:
    return sorted(Path("cache").glob("*/*.safetensors"))


@pytest.mark.ci
def test_a_study_and_the_next_with_other_arms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run("plain")
    assert len(plain) == 8
    assert run("first", *CACHE) == plain
    size = sum(path.stat().st_size for path in entries())
    assert size
    there, said = entries(), capsys.readouterr().out
    assert said.count("activations: up to ") == 1
    number = float(said.partition("activations: up to ")[2].partition(" KB more")[0])
    assert 1000 * number - 1000 * len(there) < size <= 1000 * number + 51
    monkeypatch.setattr(ActivationsStore, "get_activations", lambda *_: pytest.fail("it was run"))
    assert run("second", *CACHE) == plain
    arms = {**STUDY["arms"], "topk": {"train": {"architecture": "topk"}, "sparsity": {"k": [4]}}}
    assert run("other", *CACHE, arms=arms).items() > plain.items()
    assert entries() == there
    assert capsys.readouterr().out.count("activations: all of them are in ") == 2
    run("again", *CACHE, "--cache_budget", "1KB")  # which has nothing to write


@pytest.mark.ci
def test_pilots_are_told_of_all_that_follows_them(capsys: pytest.CaptureFixture[str]) -> None:
    models = {"world": {**STUDY["models"]["world"], "target_l0": [12]}}
    run("run", *CACHE, models=models, arms={"l1": {}})
    number = float(
        capsys.readouterr().out.partition("activations: up to ")[2].partition(" KB more")[0]
    )
    size = sum(path.stat().st_size for path in entries())
    assert len({path.parent for path in entries()}) == 4  # the pilots', two seeds', held out
    assert 1000 * number - 1000 * len(entries()) < size <= 1000 * number + 51


def test_what_goes_over_the_budget_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run("run", *CACHE, "--cache_budget", "100KB", code=1)
    assert "and --cache_budget is 100.0 KB: raise it" in capsys.readouterr().err
    assert not Path("cache").exists()


def test_flags_that_do_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run("run", "--cache_budget", "1GB", code=2)
    assert "--cache_budget: it needs --activation_cache" in capsys.readouterr().err
    run("run", *CACHE, "--cache_budget", "much", code=2)
    assert "--cache_budget: 'much' is no size" in capsys.readouterr().err
    toy = {"train": {"model_name": "synthetic:toy"}, "sparsity": {"l1_coefficient": [1]}}
    run("run", *CACHE, models={"toy": {**toy, "suites": {}}}, arms={"l1": {}}, code=1)
    assert "--activation_cache: the study has no language model" in capsys.readouterr().err
    train = {**STUDY["models"]["world"]["train"], "activation_cache": "x"}
    run("run", models={"world": {**STUDY["models"]["world"], "train": train}}, code=2)
    assert "activation_cache: the study itself decides it" in capsys.readouterr().err
