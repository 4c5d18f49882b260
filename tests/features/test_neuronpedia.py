"""What is written for Neuronpedia has the fields of SAEDashboard 0.8, and the pages' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_plugins.entrypoints.main import main
from sae_plugins.features.logits import Readout, histogram
from sae_plugins.features.neuronpedia import _edges, public
from sae_plugins.features.result import FeaturePages

OF_BATCH = {"model_id": str, "layer": int, "sae_set": str, "sae_id_suffix": None, "features": list}
OF_FEATURE = {
    "feature_index": int,
    **dict.fromkeys(
        ("neuron_alignment_indices", "correlated_neurons_indices", "correlated_features_indices"),
        (int,),
    ),
    **dict.fromkeys(
        ("neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_l1",
         "correlated_neurons_pearson", "correlated_features_l1", "correlated_features_pearson",
         "neg_values", "pos_values", "freq_hist_data_bar_values", "freq_hist_data_bar_heights",
         "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
         "vector"),
        (float,),
    ),
    "neg_str": (str,), "pos_str": (str,), "frac_nonzero": float, "n_prompts_total": int,
    "n_tokens_in_prompt": int, "dataset": str, "activations": (dict,),
}  # fmt: skip
"""The arguments of its classes, and what they must be."""
OF_ACTIVATION = {"bin_min": float, "bin_max": float, "bin_contains": float, "tokens": (str,),
                 "values": (float,), "qualifying_token_index": int}  # fmt: skip


@pytest.fixture(scope="module")
def files(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("neuronpedia") / "out"
    line = ["features", str(runs[0]), "--format", "neuronpedia", "--tokens", "2048"]
    assert main([*line, "--output_path", str(out), "--device", "cpu"]) == 0
    return sorted(out.iterdir())


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert [*sorted(found)] == sorted(expected)
    for name, kind in expected.items():
        if isinstance(kind, tuple):
            assert {*map(type, found[name])} <= {*kind}, name
        else:
            assert type(found[name]) is (kind or type(None)), name


def test_all_fields_are_those_of_saedashboard(files: list[Path]) -> None:
    assert [file.name for file in files] == ["batch-0.json", "batch-1.json"]
    numbers = []
    for file in files:
        batch = json.loads(file.read_text())
        check(batch, OF_BATCH)
        for feature in batch["features"]:
            check(feature, OF_FEATURE)
            numbers.append(feature["feature_index"])
            for activation in feature["activations"]:
                check(activation, OF_ACTIVATION)
                assert len(activation["tokens"]) == len(activation["values"])
                assert activation["values"][activation["qualifying_token_index"]] > 0
    assert numbers == [*range(96)]


def test_numbers_are_those_of_the_pages(files: list[Path], pages: FeaturePages) -> None:
    batch = json.loads(files[0].read_text())
    about = pages.index["saes"][0]
    assert (batch["model_id"], batch["layer"]) == ("sae-plugins-world", 1)
    for number in (0, 30, 63):
        feature, shown = batch["features"][number], pages.feature(number)
        assert feature["frac_nonzero"] == about["count"][number] / pages.index["counted"]
        assert sum(feature["freq_hist_data_bar_heights"]) == about["count"][number]
        assert sum(feature["logits_hist_data_bar_heights"]) > 1000  # all tokens
        assert feature["pos_str"] == [shown.words[i] for i, _ in shown.data["up"]]
        tops = [each for each in feature["activations"] if each["bin_min"] == -1]
        assert [each["tokens"] for each in tops] == [[w for w, _ in e] for e in shown.examples()]
        rest = feature["activations"][len(tops) :]
        for each in rest:
            value = each["values"][each["qualifying_token_index"]]
            width = shown.data["bar"]
            assert each["bin_min"] - width <= value <= each["bin_max"] + width


def test_saedashboard_reads_it(files: list[Path]) -> None:
    """With its own classes, where it is installed, if only by `pip install --no-deps`."""
    dashboard = pytest.importorskip("sae_dashboard.neuronpedia.neuronpedia_dashboard")
    for file in files:
        written = json.loads(file.read_text())
        assert dashboard.NeuronpediaDashboardBatch(**written).to_dict() == written


def test_bands_lie_between_quarters_of_the_firings() -> None:
    assert _edges([10, 10, 10, 10], 0.5) == [0, 0.5, 1, 1.5, 2]
    assert _edges([97, 1, 1, 1], 1) == [0, 1, 1, 1, 4]
    assert _edges([], 1) == [0, 0, 0, 0, 0]


def test_the_logits_of_all_tokens_are_counted() -> None:
    readout = Readout(None, torch.ones(4), False, torch.randn(4, 30), "")
    counts, middles = histogram(readout, torch.randn(4), 5)
    assert sum(counts) == 30
    assert middles == sorted(middles)


@pytest.mark.parametrize(
    ("known", "said"),
    [("gpt2", "gpt2"), ("google/gemma-2-2b", "google/gemma-2-2b"), ("/home/me/model", "model"),
     ("~/texts.jsonl", "texts.jsonl"), ("../mine/", "mine"), ("there/model", "model"),
     ("held-out text of the embedded world", "held-out text of the embedded world")],
)  # fmt: skip
def test_no_folder_of_this_machine_is_named(
    known: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "model").mkdir(parents=True)
    assert public(known) == said


def test_one_sae_alone_can_be_written(runs: list[Path], capsys: Any) -> None:
    assert main(["features", *map(str, runs), "--format", "neuronpedia"]) == 2
    assert "--format neuronpedia writes one SAE: name one" in capsys.readouterr().err
