"""Special tokens whose activations dwarf all others: what is said, and when it is an error."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import save
from safetensors.torch import load_file, save_file

from sae_plugins import recipes
from sae_plugins.base.errors import PluginError
from sae_plugins.base.seeds import seed_data
from sae_plugins.runs.language_model import LanguageModelSetup
from sae_plugins.runs.special_tokens import outlier
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settle import settle

SMALL = (
    *("--d_sae", "64", "--training_tokens", "640", "--train_batch_size_tokens", "64"),
    *("--context_size", "32", "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8"),
    *("--heldout_tokens", "0", "--streaming", "false", "--device", "cpu"),
    *("--model_class_name", "AutoModelForCausalLM", "--hook_name", "model.layers.1"),
)
RECIPE = ("--recipe", "hybrid-order-demo")
BOS = 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as others, and one whose activations at BOS are a hundred times as long."""
    place = tmp_path_factory.mktemp("place")
    for name in ("usual", "outlier"):
        save(place / name)
    file = place / "outlier" / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][BOS] *= 2000  # layers add to it; the others grow, too
    save_file(weights, file, {"format": "pt"})
    rows = [{"text": f"Number {n} of many, and {n * n} is its square. " * 3} for n in range(50)]
    (place / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def first_batch(place: Path, model: str, *flags: str) -> torch.Tensor:
    """What a run trains on first."""
    where = ("--model_name", str(place / model), "--dataset_path", str(place / "text.jsonl"))
    setup = LanguageModelSetup(settle(train_flags([*SMALL, *where, *flags])).for_saelens())
    seed_data(0)
    return next(setup.stream())


def test_an_outlier_is_warned_of_and_the_flag_is_named(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        with_bos = first_batch(place, "outlier")
        assert "activations at the special token '<s>' are up to" in caplog.text
        assert "give --exclude_special_tokens true" in caplog.text
        caplog.clear()
        without = first_batch(place, "outlier", "--exclude_special_tokens", "true")
        usual = first_batch(place, "usual", *RECIPE)
    assert "special token" not in caplog.text
    norms, others = with_bos.norm(dim=-1), without.norm(dim=-1)
    assert norms.max() > 5 * norms.median()
    assert others.max() < 5 * others.median()
    assert usual.isfinite().all()


def test_a_recipe_of_ours_that_says_nothing_of_them_is_refused(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        PluginError, match=r"recipe hybrid-order-demo is not made .* --exclude_special_tokens true"
    ):
        first_batch(place, "outlier", *RECIPE)
    with caplog.at_level(logging.WARNING):  # what is asked for is done, and said
        first_batch(place, "outlier", *RECIPE, "--exclude_special_tokens", "false")
    assert "special token '<s>'" in caplog.text


def test_every_gemma_recipe_leaves_them_out() -> None:
    for name in recipes.names():
        if not name.endswith("-demo"):
            assert recipes.load(name)["exclude_special_tokens"] is True, name


@pytest.mark.parametrize(
    ("norms", "tokens", "expected"),
    [
        ([1, 1, 2, 30, 3], [5, 6, 7, 0, 8], (0, 30.0, 1.0)),
        ([1, 1, 2, 4, 3], [5, 6, 7, 0, 8], None),
        ([30, 1, 1, 1, 1], [5, 0, 1, 6, 7], None),  # an outlier, and not special
        ([9, 30, 1, 1, 1], [0, 1, 5, 6, 7], (1, 30.0, 1.0)),
        ([1, 1, 30], [5, 6, 7], None),
        ([1, 1, 30], [0, 0, 1], None),
    ],
)
def test_outlier(norms: list[float], tokens: list[int], expected: Any) -> None:
    acts = torch.tensor(norms, dtype=torch.float32)[:, None] * torch.tensor([0.6, 0.8])
    found = outlier(acts.bfloat16(), torch.tensor(tokens), [0, 1])
    assert found == (expected and pytest.approx(expected, rel=1e-2))
