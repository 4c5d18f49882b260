"""How the prompts of a text begin, what stands between documents, and what does not count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from language_models import tokenizer
from sae_lens.saes.sae import SAEMetadata
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.models import LanguageModel
from sae_plugins.features.text import prompts_of


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=40, d_head=4, n_heads=2, d_vocab=259, act_fn="gelu", seed=0
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        hooked = HookedTransformer(config)
    hooked.tokenizer = made = tokenizer()
    hooked.to_tokens = lambda text, **_: made(text, return_tensors="pt").input_ids
    return LanguageModel("small", hooked, "", "float32", "cpu", "small", "given")


def prompts(model: LanguageModel, dataset: str | None, **metadata: Any) -> Any:
    cfg = SimpleNamespace(metadata=SAEMetadata(**metadata))
    subject: Any = SimpleNamespace(
        sae=SimpleNamespace(cfg=cfg), source="runs/a", dataset=dataset, d_in=8, model_name="small",
        hook_name="blocks.0.hook_resid_post", hook_head_index=None,
    )  # fmt: skip
    return prompts_of(subject, model, {})


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Documents of four letters, which are a token each."""
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "abcd"}\n' * 30)
    return str(file)


@pytest.mark.parametrize(
    ("metadata", "beginning"),
    [
        ({}, "<s>abcd<s>abcd<s>a"),
        ({"prepend_bos": False}, "abcd<s>abcd<s>ab"),
        ({"sequence_separator_token": None}, "<s>abcdabcdabc"),
        ({"sequence_separator_token": "eos"}, "<s>abcd</s>abcd</s>a"),
        ({"sequence_separator_token": "sep"}, "<s>abcdabcdabc"),  # it has none
    ],
)
def test_prompts_are_as_in_training(
    model: LanguageModel, texts: str, metadata: dict[str, Any], beginning: str
) -> None:
    found = prompts(model, texts, context_size=12, **metadata)
    (batch,) = found.batches(2, 8)
    assert batch.shape == (2, 12)
    assert model.hooked.tokenizer.decode(batch[0]).replace(" ", "") == beginning
    assert found.activations(batch).shape == (2, 12, 8)
    assert found.counting(batch)[0].tolist() == [int(token) > 2 for token in batch[0]]


def test_what_was_left_out_in_training_does_not_count(model: LanguageModel, texts: str) -> None:
    letter = model.hooked.tokenizer.convert_tokens_to_ids("b")
    found = prompts(
        model, texts, context_size=6, exclude_special_tokens=[letter], seqpos_slice=[2, 5]
    )
    (batch,) = found.batches(1, 8)  # <s>abcd<s>
    assert found.counting(batch).tolist() == [[False, False, False, True, True, False]]


def test_a_text_ends(model: LanguageModel, texts: str) -> None:
    found = prompts(model, texts, context_size=12)
    letters = sum(int(found.counting(batch).sum()) for batch in found.batches(1000, 4))
    assert 4 * 30 - 12 < letters <= 4 * 30  # each is read once, but for a last prompt in part


def test_a_context_is_no_longer_than_the_model_s(model: LanguageModel, texts: str) -> None:
    assert prompts(model, texts).context_size == 40


def test_an_sae_of_no_known_text_is_refused(model: LanguageModel) -> None:
    with pytest.raises(SuiteError, match=r"runs/a: its config does not say .* --dataset_path"):
        prompts(model, None)


def test_a_text_that_is_gone_is_not_blamed_on_a_flag(model: LanguageModel) -> None:
    said = r"runs/a was trained on /gone.jsonl, which .* no such file or folder.*; name another"
    with pytest.raises(SuiteError, match=said):
        prompts(model, "/gone.jsonl")


def test_a_model_without_a_tokenizer_is_refused(model: LanguageModel, texts: str) -> None:
    bare = SimpleNamespace(name="small", hooked=SimpleNamespace(tokenizer=None))
    with pytest.raises(SuiteError, match="small has no tokenizer"):
        prompts(bare, texts)  # type: ignore[arg-type]
