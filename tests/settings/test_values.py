"""Values of flags, from texts and from YAML."""

import pytest

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.values import convert


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
        ("k", 8, 8),
        ("k", 8.0, 8.0),
        ("k", "8", 8),
        ("k", "8.0", 8.0),
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
    with pytest.raises(SaePluginsError, match=f"--{name}"):
        convert(all_flags()[name], value)
