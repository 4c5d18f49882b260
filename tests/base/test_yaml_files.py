"""YAML of users: nothing of it is lost without a word, and no few lines take the machine."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sae_plugins.base.errors import PluginError
from sae_plugins.base.yaml_files import layers, parse

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab: -", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_what_was_written_is_read(value) -> None:
    assert parse(yaml.safe_dump(value)) == value


def test_aliases_and_merged_keys_may_be_used() -> None:
    text = "base: &base {k: 8, lr: 1}\nmine: {<<: *base, k: 16}\nlist: [*base, *base]\n"
    assert parse(text) == {
        "base": {"k": 8, "lr": 1},
        "mine": {"k": 16, "lr": 1},
        "list": [{"k": 8, "lr": 1}] * 2,
    }
    assert parse("") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms:\n  l1: {k: 1}\n  l1: {k: 2}\n", "the key 'l1' stands twice"),
        ("k: 1\nlr: 2\nk: 1\n", "the key 'k' stands twice"),
        ("[{a: 1, a: 2}]", "the key 'a' stands twice"),
        (BOMB, "aliases make more than 100,000 values of it"),
        ("a: &a [*a]", "a value contains itself"),
        ("a: &a {b: *a}", "a value contains itself"),
        ("[\n" * 5000, "it is nested too deeply"),
    ],
)
def test_what_would_be_lost_or_hang_is_refused(text: str, said: str, tmp_path) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        parse(text)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(PluginError, match=rf"study .*mine\.yaml is not YAML: (?s:.*){said}"):
        layers("study", str(tmp_path / "mine.yaml"), tmp_path)
