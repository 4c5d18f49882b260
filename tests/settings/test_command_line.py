"""Command lines of `train`, as values by flag."""

import pytest

from sae_plugins.settings.command_line import train_flags


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--lr 0.001", {"lr": 0.001}),
        ("--lr=1e-3", {"lr": 0.001}),
        ("--lr 1 --lr 2", {"lr": 2.0}),
        ("--training_tokens 10_000", {"training_tokens": 10_000}),
        ("--plugin a --plugin=b --without c", {"plugin": ["a", "b"], "without": ["c"]}),
        ("--autocast", {"autocast": True}),
        ("--autocast --lr 1", {"autocast": True, "lr": 1.0}),
        ("--autocast false", {"autocast": False}),
        ("--prefetch_llm_batches", {"prefetch_llm_batches": True}),
        ("--prefetch_llm_batches 2", {"prefetch_llm_batches": 2}),
        ("--clip none", {"clip": None}),
        ("--clip 0.5", {"clip": 0.5}),
        ("--loss_form none", {"loss_form": None}),
        ("--normalize_activations none", {"normalize_activations": "none"}),
        ("--matryoshka_widths 4 8 16", {"matryoshka_widths": [4, 8, 16]}),
        ("--matryoshka_widths 4,8,16", {"matryoshka_widths": [4, 8, 16]}),
        ("--seqpos_slice 5 -5", {"seqpos_slice": [5, -5]}),
        ("--seqpos_slice none 3", {"seqpos_slice": [None, 3]}),
        ("--sequence_separator_token 7", {"sequence_separator_token": 7}),
        ("--sequence_separator_token eos", {"sequence_separator_token": "eos"}),
        ("--exclude_special_tokens", {"exclude_special_tokens": True}),
        ("--exclude_special_tokens 0 1", {"exclude_special_tokens": [0, 1]}),
        ('--model_kwargs {"a":1}', {"model_kwargs": {"a": 1}}),
        ("--k 8", {"k": 8}),
        ("--reorder.interval 5", {"reorder.interval": "5"}),
        ("--reorder.interval=5", {"reorder.interval": "5"}),
        ("--reorder.threshold -1e-3", {"reorder.threshold": "-1e-3"}),
    ],
)
def test_command_lines(line: str, expected: dict):
    parsed = train_flags(line.split())
    assert parsed == expected
    assert [type(value) for value in parsed.values()] == [type(v) for v in expected.values()]
