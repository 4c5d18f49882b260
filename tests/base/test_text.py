"""Words as people read them."""

from __future__ import annotations

import pytest

from sae_plugins.base.text import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42, "42 s"),
        (100, "2 min"),
        (3599, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (86399, "1 d 0 h"),
        (200_000, "2 d 8 h"),
    ],
)
def test_how_long_something_takes(seconds: float, said: str) -> None:
    assert duration(seconds) == said
