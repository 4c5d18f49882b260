"""The table of flags: in step with SAELens, parsed, converted, shown."""

import json

import pytest

from sae_plugins.settings import flags
from sae_plugins.settings.flags import UsageError, all_flags, convert, parse
from sae_plugins.settings.introspection import introspect


def test_the_generated_file_is_in_step_with_sae_lens():
    written = json.loads(flags.FLAGS_FILE.read_text("utf-8"))
    now = json.loads(json.dumps(introspect()))
    assert written == now, "run `python -m sae_plugins.settings.flags`"


def test_our_defaults_are_those_of_the_framework():
    from sae_plugins.framework.architectures import ARCHITECTURES
    from sae_plugins.framework.resolve import TrainingSettings

    assert set(flags.architectures()) == set(ARCHITECTURES)
    for name, field in TrainingSettings.model_fields.items():
        assert flags.our_flags()[name].default == field.default


def test_every_flag_has_help_and_a_known_group():
    for flag in all_flags().values():
        assert flag.help.strip(), flag.name
        assert f"--{flag.name} " in flags.help_text(100), flag.name


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
    parsed = parse(line.split())
    assert parsed == expected
    assert [type(value) for value in parsed.values()] == [type(v) for v in expected.values()]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", 1, 1.0),
        ("lr", "1e-3", 0.001),  # YAML reads this as a text
        ("training_tokens", 5, 5),
        ("autocast", True, True),
        ("n_checkpoints", 1, 1),
        ("clip", None, None),
        ("seqpos_slice", [None, 5], [None, 5]),
        ("model_kwargs", {"a": 1}, {"a": 1}),
        ("exclude_special_tokens", False, False),
        ("k", 4.5, 4.5),
    ],
)
def test_values_of_recipes(name: str, value: object, expected: object):
    converted = convert(all_flags()[name], value)
    assert (converted, type(converted)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training_tokens", True),
        ("autocast", 1),
        ("lr", None),
        ("model_kwargs", "[1]"),
    ],
)
def test_values_that_do_not_fit(name: str, value: object):
    with pytest.raises(UsageError, match=f"--{name}"):
        convert(all_flags()[name], value)
