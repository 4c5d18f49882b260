"""The JSON that users of SAEDashboard upload to Neuronpedia, in the fields of its version 0.8.

What is not known here is empty: correlations with neurons and Pearson's between features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_plugins.features.logits import Readout, histogram
from sae_plugins.features.pages import BANDS, Pages
from sae_plugins.features.shards import activations

BATCH = "batch-{}.json"
"""The files, by number."""
_NEURONS = 3
"""Entries of a decoder row that are named."""


def batches(pages: Pages, about: Mapping[str, Any], layer: int, model: str) -> Iterator[str]:
    """The files of an SAE, each with the features of one shard.

    Args:
        pages: its features.
        about: of the text; see `build`.
        layer: of the SAE's hook.
        model: the language model's name, which may be another at Neuronpedia.
    """
    number = 0
    for shard in pages.shards():
        features = []
        for data in shard["features"]:
            row = pages.shown.W_dec[number].detach().float()
            features.append(_feature(number, data, shard["words"], about, row, pages.shown.readout))
            number += 1
        batch = {
            "model_id": public(model),
            "layer": layer,
            "sae_set": pages.shown.name,
            "sae_id_suffix": None,
            "features": features,
        }
        yield json.dumps(batch, allow_nan=False)


def public(name: str) -> str:
    """A model or a text by its name on the Hub; of what is on this machine, the last name alone."""
    path = Path(name).expanduser()
    is_here = path.is_absolute() or name.startswith(".") or path.exists()
    return path.resolve().name if is_here else name


def _feature(
    number: int, data: Mapping[str, Any], words: Sequence[str], about: Mapping[str, Any],
    row: Tensor, readout: Readout | None,
) -> dict[str, Any]:  # fmt: skip
    largest = row.abs().topk(min(_NEURONS, len(row)))
    values = row[largest.indices]
    counts, middles = ([], []) if readout is None else histogram(readout, row)
    fired = sum(data["bars"])
    return {
        "feature_index": number,
        "neuron_alignment_indices": largest.indices.tolist(),
        "neuron_alignment_values": _rounded(values),
        "neuron_alignment_l1": _rounded(values.abs() / row.abs().sum().clamp(min=1e-30)),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": [words[i] for i, _ in data.get("down", [])],
        "neg_values": [value for _, value in data.get("down", [])],
        "pos_str": [words[i] for i, _ in data.get("up", [])],
        "pos_values": [value for _, value in data.get("up", [])],
        "frac_nonzero": fired / about["counted"],
        "freq_hist_data_bar_values": [(i + 0.5) * data["bar"] for i in range(len(data["bars"]))],
        "freq_hist_data_bar_heights": [float(count) for count in data["bars"]],
        "logits_hist_data_bar_heights": counts,
        "logits_hist_data_bar_values": middles,
        "n_prompts_total": about["read"] // about["context"],
        "n_tokens_in_prompt": about["context"],
        "dataset": public(about["text"]),
        "decoder_weights_dist": [],
        "activations": [*_activations(data, words)],
        "vector": [],
    }


def _activations(data: Mapping[str, Any], words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The strongest ones, then those of each band, as SAEDashboard marks them."""
    largest = max((activations(each)[each[0]] for each in data["top"]), default=0.0)
    for each in data["top"]:
        yield _activation(each, words, -1.0, largest, -1.0)
    edges = _edges(data["bars"], data["bar"])
    for band, some in enumerate(data["sample"]):  # the strongest band first
        low, high = edges[BANDS - 1 - band], edges[BANDS - band]
        for each in some:
            yield _activation(each, words, low, high, 1 / BANDS)


def _edges(bars: Sequence[int], width: float) -> list[float]:
    """The activations between which each band lies, to the width of a bar."""
    total, passed, edges = sum(bars), 0, [0.0]
    for number, count in enumerate(bars):
        passed += count
        while len(edges) < BANDS and passed * BANDS >= total * len(edges):
            edges.append((number + 1) * width)
    return [*edges, *[len(bars) * width] * (BANDS + 1 - len(edges))]


def _activation(
    example: list[Any], words: Sequence[str], low: float, high: float, share: float
) -> dict[str, Any]:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": [words[token] for token in example[1]],
        "values": activations(example),
        "qualifying_token_index": example[0],
    }


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.3g}") for value in values.to(torch.float64).tolist()]
