"""Texts as their types have them, and what is said of those that do not fit."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.values import booleans_as_text, fitting, read, validated
from sae_plugins.framework.steps import Steps


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (int, "1e6", 1_000_000),
        (int, "100k", 100_000),
        (int, "1.5K", 1500),
        (int, "2m", 2_000_000),
        (int, "10_000", 10_000),
        (int, "-1e3", -1000),
        (float, "2k", 2000.0),
        (float, "1e-3", 0.001),
        (str, "100k", "100k"),
        (str, "none", "none"),
        (str | None, "none", None),
        (str | None, "None", None),
        (int | None, "null", None),
        (list[int], "4 8", [4, 8]),
        (list[int], "[4, 8]", [4, 8]),
        (list[int | None], "none,1k", [None, 1000]),
        (tuple[str, ...], "none a", ("none", "a")),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (list[dict[str, int]], '[{"a": 1}]', [{"a": 1}]),
        (bool | int, "2", 2),
        (int | float, "8", 8),
        (float | int, "8", 8),
        (int | float, "8.0", 8.0),
        (float | int, "8.0", 8.0),
        (int | float, "-0.5", -0.5),
        (int | float, "1e-3", 0.001),
        (int | float, ".5", 0.5),
        (int | float, "10_000", 10_000),
        (Steps, "10_000", 10_000),
        (Steps, "1e-1", 0.1),
        (str | float, "nan", "nan"),
        (int | None, "8.0", 8),
        (float | None, "8", 8.0),
        (str | None, "8.0", "8.0"),
        (list[int | float], "4 8.0", [4, 8.0]),
    ],
)
def test_texts_are_read_as_their_types_have_them(annotation: Any, text: str, expected: Any) -> None:
    assert repr(read(annotation, text)) == repr(expected)  # 8 is no 8.0


@pytest.mark.parametrize(
    ("annotation", "text", "message"),
    [
        (int, "1.5e0", "--x '1.5e0': it must be a whole number"),
        (int, "nan", "--x 'nan': it must be a whole number"),
        (int, "1e999999999", "--x '1e999999999': it must be a whole number"),
        (int, "k", "--x 'k': it must be a whole number"),
        (float | None, "fast", "--x 'fast': it must be a number or none"),
        (list[int], "4 a", "--x 'a': it must be a whole number"),
        (Literal["mean", "sum"], "maen", "--x 'maen': did you mean 'mean'?"),
        (Literal["mean", "sum", "l2"], "?", "--x '?': it must be 'mean', 'sum' or 'l2'"),
        (dict[str, int], "[1]", "--x '[1]': it must be a mapping, in JSON on a command line"),
    ],
)
def test_what_does_not_fit_is_said_in_words(annotation: Any, text: str, message: str) -> None:
    with pytest.raises(SaePluginsError) as caught:
        fitting(annotation, read(annotation, text), "--x")
    assert str(caught.value) == message


def test_every_value_of_a_model_that_does_not_fit_has_a_sentence() -> None:
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        interval: int = Field(1, ge=1)
        every: float | None = Field(1.0, gt=0, lt=5)
        sizes: int | list[int] = 3
        needed: str

    values = {"interval": 0, "every": 5, "sizes": "big", "evry": 3}
    with pytest.raises(SaePluginsError) as caught:
        validated(Options, values, "--odd.")
    assert caught.value.args == (
        "--odd.interval 0: it must be at least 1",
        "--odd.every 5: it must be less than 5 or none",
        "--odd.sizes 'big': it must be a whole number or a list",
        "--odd.needed: it is needed",
        "there is no option --odd.evry: did you mean '--odd.every'?",
    )


def test_texts_that_say_true_or_false_are_found_at_any_depth():
    told = {"a": "False", "b": [{"c": ("true",)}], "d": "falsehood", "e": False, "f": {"g": 1}}
    assert sorted(booleans_as_text(told)) == ["a", "c"]
    deep: list[Any] = ["true"]
    for _ in range(10_000):
        deep = [deep]
    assert booleans_as_text({"x": deep}) == ["x"]
